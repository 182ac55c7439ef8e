package server

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// kindCodes is the one table from kinds of failure to gRPC codes.
var kindCodes = map[errs.Kind]codes.Code{
	errs.Unknown:     codes.Unknown,
	errs.NotFound:    codes.NotFound,
	errs.Exists:      codes.AlreadyExists,
	errs.Invalid:     codes.InvalidArgument,
	errs.Conflict:    codes.FailedPrecondition,
	errs.Unavailable: codes.Unavailable,
	errs.Unsupported: codes.Unimplemented,
	errs.Timeout:     codes.DeadlineExceeded,
	errs.Canceled:    codes.Canceled,
	errs.Exhausted:   codes.ResourceExhausted,
}

// The prefixes that a kubelet looks for in the errors of PullImage. Its client strips the code from the
// text only where the code is Unknown, so errors that begin with one stay Unknown.
const (
	registryUnavailable       = "RegistryUnavailable"
	signatureValidationFailed = "SignatureValidationFailed"
)

// toStatus turns what a method returned into what the client gets. An error that is a status already, as
// the generated Unimplemented ones are, is left alone.
func toStatus(method string, err error) error {
	var own interface{ GRPCStatus() *status.Status }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own.GRPCStatus().Err()
	}
	text := shorten(err.Error())
	if method == cri.ImageService_PullImage_FullMethodName && (strings.HasPrefix(text, registryUnavailable) || strings.HasPrefix(text, signatureValidationFailed)) {
		return status.Error(codes.Unknown, text)
	}
	return status.Error(kindCodes[errs.KindOf(err)], text)
}

// maxText bounds what an error says. It goes into a header, and some clients take no more than 8 KiB of those; what a
// caller sent can be 16 MiB.
const maxText = 4 << 10

// shorten takes out the middle of a long text: its beginning says what failed, its end why.
func shorten(text string) string {
	if len(text) <= maxText {
		return text
	}
	const head, tail = maxText / 2, maxText / 4
	left := len(text) - head - tail
	return strings.ToValidUTF8(text[:head], "") + fmt.Sprintf(" … (%d bytes) … ", left) + strings.ToValidUTF8(text[len(text)-tail:], "")
}
