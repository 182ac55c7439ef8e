// Package admin is what the operator's command line asks of a running server beside the CRI: an audit, the
// default network, and pulls that tell how far they are.
//
// It is a gRPC service on the CRI's socket whose messages are the well-known types of protobuf, so that
// nothing needs to be generated. It is no stable interface: the command line and the server are of one build.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// Service is what the server does for the command line.
type Service interface {
	// Check audits the records against the machine; deep re-hashes the content of images too.
	Check(ctx context.Context, deep bool) ([]sandbox.Problem, error)
	// EnableDefaultNetwork switches the default network on. It is idempotent.
	EnableDefaultNetwork(ctx context.Context) error
	// RemoveDefaultNetwork switches it off and removes what it made on the host.
	RemoveDefaultNetwork(ctx context.Context) error
	// Pull pulls an image. progress may be called from several goroutines, but not after Pull returned.
	Pull(ctx context.Context, ref string, progress func(image.Progress)) (id string, err error)
}

const (
	service       = "criserver.admin.v1.Admin"
	methodCheck   = "/" + service + "/Check"
	methodEnable  = "/" + service + "/EnableDefaultNetwork"
	methodDisable = "/" + service + "/RemoveDefaultNetwork"
	methodPull    = "/" + service + "/Pull"
)

// Register adds the service to a gRPC server.
func Register(s grpc.ServiceRegistrar, impl Service) { s.RegisterService(&desc, impl) }

var desc = grpc.ServiceDesc{
	ServiceName: service,
	HandlerType: (*Service)(nil),
	Methods: []grpc.MethodDesc{
		unary("Check", methodCheck, func(ctx context.Context, s Service, req *wrapperspb.BoolValue) (proto.Message, error) {
			problems, err := s.Check(ctx, req.GetValue())
			return encodeProblems(problems), err
		}),
		unary("EnableDefaultNetwork", methodEnable, func(ctx context.Context, s Service, _ *emptypb.Empty) (proto.Message, error) {
			return &emptypb.Empty{}, s.EnableDefaultNetwork(ctx)
		}),
		unary("RemoveDefaultNetwork", methodDisable, func(ctx context.Context, s Service, _ *emptypb.Empty) (proto.Message, error) {
			return &emptypb.Empty{}, s.RemoveDefaultNetwork(ctx)
		}),
	},
	Streams: []grpc.StreamDesc{{StreamName: "Pull", Handler: servePull, ServerStreams: true}},
}

// unary is what generated code would be: decode, intercept, call.
func unary[T any, R interface {
	*T
	proto.Message
}](name, full string, call func(context.Context, Service, R) (proto.Message, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		req := R(new(T))
		if err := decode(req); err != nil {
			return nil, err
		}
		impl := srv.(Service) //nolint:forcetypeassert // RegisterService checked it
		if intercept == nil {
			return call(ctx, impl, req)
		}
		return intercept(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: full}, func(ctx context.Context, req any) (any, error) {
			return call(ctx, impl, req.(R)) //nolint:forcetypeassert // made above
		})
	}}
}

// servePull sends progress as it comes; what the client is too slow for is left out, but never the end.
func servePull(srv any, stream grpc.ServerStream) error {
	var req wrapperspb.StringValue
	if err := stream.RecvMsg(&req); err != nil {
		return err
	}
	ctx := stream.Context()
	updates := make(chan image.Progress, 64)
	sent := make(chan error, 1)
	go func() {
		var err error
		for p := range updates {
			if err == nil {
				err = stream.SendMsg(encodeProgress(p))
			}
		}
		sent <- err
	}()
	id, err := srv.(Service).Pull(ctx, req.GetValue(), func(p image.Progress) { //nolint:forcetypeassert // RegisterService checked it
		select {
		case updates <- p:
		default:
			if p.Phase == "done" || p.Phase == "exists" {
				updates <- p
			}
		}
	})
	close(updates)
	if serr := <-sent; err == nil {
		err = serr
	}
	if err != nil {
		return err
	}
	return stream.SendMsg(&structpb.Struct{Fields: map[string]*structpb.Value{"id": structpb.NewStringValue(id)}})
}

// Client asks a server.
type Client struct{ conn grpc.ClientConnInterface }

// NewClient returns a client on a connection to the CRI's socket.
func NewClient(conn grpc.ClientConnInterface) *Client { return &Client{conn} }

var _ Service = (*Client)(nil)

// Check implements Service.
func (c *Client) Check(ctx context.Context, deep bool) ([]sandbox.Problem, error) {
	var resp structpb.ListValue
	if err := c.conn.Invoke(ctx, methodCheck, wrapperspb.Bool(deep), &resp); err != nil {
		return nil, err
	}
	return decodeProblems(&resp), nil
}

// EnableDefaultNetwork implements Service.
func (c *Client) EnableDefaultNetwork(ctx context.Context) error {
	return c.conn.Invoke(ctx, methodEnable, &emptypb.Empty{}, &emptypb.Empty{})
}

// RemoveDefaultNetwork implements Service.
func (c *Client) RemoveDefaultNetwork(ctx context.Context) error {
	return c.conn.Invoke(ctx, methodDisable, &emptypb.Empty{}, &emptypb.Empty{})
}

// Pull implements Service. progress is called from the caller's goroutine and may be nil.
func (c *Client) Pull(ctx context.Context, ref string, progress func(image.Progress)) (string, error) {
	stream, err := c.conn.NewStream(ctx, &desc.Streams[0], methodPull)
	if err != nil {
		return "", err
	}
	if err := stream.SendMsg(wrapperspb.String(ref)); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	return receivePull(stream, ref, progress)
}

func receivePull(stream grpc.ClientStream, ref string, progress func(image.Progress)) (string, error) {
	for id := ""; ; {
		var m structpb.Struct
		err := stream.RecvMsg(&m)
		switch {
		case errors.Is(err, io.EOF) && id != "":
			return id, nil
		case errors.Is(err, io.EOF):
			return "", fmt.Errorf("pull %s: the server ended without a result", ref)
		case err != nil:
			return "", err
		}
		if v := m.GetFields()["id"].GetStringValue(); v != "" {
			id = v
		} else if progress != nil {
			progress(decodeProgress(&m))
		}
	}
}

func encodeProgress(p image.Progress) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"layer": structpb.NewStringValue(p.Layer), "phase": structpb.NewStringValue(p.Phase),
		"bytes": structpb.NewNumberValue(float64(p.Done)), "total": structpb.NewNumberValue(float64(p.Total)),
	}}
}

func decodeProgress(m *structpb.Struct) image.Progress {
	f := m.GetFields()
	return image.Progress{Layer: f["layer"].GetStringValue(), Phase: f["phase"].GetStringValue(),
		Done: int64(f["bytes"].GetNumberValue()), Total: int64(f["total"].GetNumberValue())}
}

func encodeProblems(problems []sandbox.Problem) *structpb.ListValue {
	out := &structpb.ListValue{}
	for _, p := range problems {
		out.Values = append(out.Values, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"kind": structpb.NewStringValue(p.Kind), "subject": structpb.NewStringValue(p.Subject), "detail": structpb.NewStringValue(p.Detail),
		}}))
	}
	return out
}

func decodeProblems(l *structpb.ListValue) []sandbox.Problem {
	var out []sandbox.Problem
	for _, v := range l.GetValues() {
		f := v.GetStructValue().GetFields()
		out = append(out, sandbox.Problem{Kind: f["kind"].GetStringValue(), Subject: f["subject"].GetStringValue(), Detail: f["detail"].GetStringValue()})
	}
	return out
}
