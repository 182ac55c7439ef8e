package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/server"
	"github.com/cri-server/cri-server/pkg/server/admin"
)

// client is a connection to a running server.
type client struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	admin  *admin.Client
	conn   *grpc.ClientConn
}

// errNoServer is wrapped by the error of connect when nothing answers on the socket.
var errNoServer = errors.New("no server")

// connect finds the server. The caller closes the connection.
func (a *app) connect(ctx context.Context) (*client, error) {
	cfg, err := a.load()
	if err != nil {
		return nil, err
	}
	path := cfg.Socket
	if path == "" {
		path = filepath.Join(cfg.State, "cri-server.sock")
	}
	probe, err := server.Dial(ctx, path)
	if err != nil {
		hint := "Start it with \"cri-server serve\", or name its socket with --socket"
		if errors.Is(err, os.ErrPermission) {
			hint = "Only its user may speak to it: try again as root"
		}
		return nil, fmt.Errorf("%w answers on the socket (%s): %w. %s", errNoServer, path, cause(err), hint)
	}
	probe.Close()
	conn, err := grpc.NewClient("passthrough:///cri-server", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(server.MaxMessage), grpc.MaxCallSendMsgSize(server.MaxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return server.Dial(ctx, path) }))
	if err != nil {
		return nil, err
	}
	return &client{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), admin.NewClient(conn), conn}, nil
}

// with runs a verb on a connection.
func (a *app) with(ctx context.Context, f func(*client) error) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	return f(c)
}

// cause strips an error of the operation and address that the message has already.
func cause(err error) error {
	var errno interface{ Unwrap() error }
	for errors.As(err, &errno) {
		inner := errno.Unwrap()
		if inner == nil {
			break
		}
		err = inner
	}
	return err
}

// explain is what a person reads of an error: what the server said, without gRPC's wrapping.
func explain(err error) string {
	var st interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &st) {
		return err.Error()
	}
	s := st.GRPCStatus()
	switch {
	case s.Code() == codes.Unavailable && s.Message() == "":
		return "the server went away. See its log."
	case s.Code() == codes.Canceled:
		return "interrupted"
	}
	return s.Message()
}
