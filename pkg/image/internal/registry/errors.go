package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Unavailable is the word that the kubelet looks for at the start of a PullImage error when it is the
// registry that is away (pkg/kubelet/images of Kubernetes). It does so only with the code Unknown.
const Unavailable = "RegistryUnavailable"

// statusError is an answer that is no success.
type statusError struct {
	Code   int
	Host   string
	Detail string
	Wait   time.Duration // Retry-After
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s answered %d %s", e.Host, e.Code, http.StatusText(e.Code))
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// badAnswer is an answer that breaks the protocol or does not match what was asked for: asking the same
// host again is of no use, another mirror may do better.
type badAnswer struct{ err error }

func (e *badAnswer) Error() string { return e.err.Error() }
func (e *badAnswer) Unwrap() error { return e.err }

func badf(format string, args ...any) error { return &badAnswer{fmt.Errorf(format, args...)} }

// errStalled ends an attempt that moved too few bytes in an interval.
var errStalled = errors.New("the transfer stalled")

// newStatusError reads the error document of a registry, bounded and with nothing unprintable in it.
func newStatusError(resp *http.Response) error {
	e := &statusError{Code: resp.StatusCode, Host: resp.Request.URL.Host}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		e.Detail = printable(strings.TrimSpace(strings.Join([]string{doc.Errors[0].Code, doc.Errors[0].Message}, " ")), 200)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.Wait = min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	return e
}

func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return ' '
		}
		return r
	}, s)
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return s
}

// transient reports whether the same request may work a moment later.
func transient(err error) bool {
	var s *statusError
	var b *badAnswer
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &s):
		return s.Code == http.StatusTooManyRequests || s.Code == http.StatusRequestTimeout || s.Code >= 500 && s.Code != http.StatusNotImplemented
	case errors.As(err, &b), errors.As(err, &cert), errors.Is(err, context.Canceled):
		return false
	}
	return true // the network
}

// explain gives the failures of all hosts one error with the right kind: what, subject, cause, next step.
// The registry's own answer, asked last, decides; what the mirrors said is named too.
func explain(what, subject string, failures []error) error {
	if len(failures) == 0 {
		return errs.New(errs.Invalid, "%s (%s): no configured host has the capability for it. See hosts.toml", what, subject)
	}
	last := failures[len(failures)-1]
	cause := last
	if len(failures) > 1 {
		texts := make([]string, 0, len(failures)-1)
		for _, f := range failures[:len(failures)-1] {
			texts = append(texts, f.Error())
		}
		cause = fmt.Errorf("%w (before that: %s)", last, printable(strings.Join(texts, "; "), 1000))
	}
	var s *statusError
	var b *badAnswer
	switch {
	case errors.Is(last, context.Canceled):
		return errs.New(errs.Canceled, "%s (%s): %w", what, subject, cause)
	case errs.KindOf(last) == errs.Invalid:
		return errs.New(errs.Invalid, "%s (%s): %w", what, subject, cause)
	case errors.As(last, &s) && s.Code == http.StatusNotFound:
		return errs.New(errs.NotFound, "%s (%s): not found: %w. Check the name and the tag", what, subject, cause)
	case errors.As(last, &s) && (s.Code == http.StatusUnauthorized || s.Code == http.StatusForbidden):
		return errs.New(errs.Unknown, "%s (%s): access denied: %w. The repository may not exist or may need credentials", what, subject, cause)
	case errors.As(last, &b):
		return errs.New(errs.Invalid, "%s (%s): %w", what, subject, cause)
	case transient(last):
		return errs.New(errs.Unknown, "%s: %s (%s): %w. Check the network, the registry and hosts.toml", Unavailable, what, subject, cause)
	}
	return errs.New(errs.Unknown, "%s (%s): %w", what, subject, cause)
}
