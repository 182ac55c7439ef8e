package server

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/server/admin"
)

type fakeAdmin struct {
	err  error
	deep bool
}

func (f *fakeAdmin) Check(_ context.Context, deep bool) ([]sandbox.Problem, error) {
	f.deep = deep
	return []sandbox.Problem{{Kind: "mount", Subject: "/x", Detail: "no record"}}, f.err
}
func (f *fakeAdmin) EnableDefaultNetwork(context.Context) error { return f.err }
func (f *fakeAdmin) RemoveDefaultNetwork(context.Context) error { return f.err }
func (f *fakeAdmin) Pull(_ context.Context, ref string, progress func(image.Progress)) (string, error) {
	progress(image.Progress{Layer: "l", Done: 1 << 40, Total: 2 << 40, Phase: "download"})
	return "sha256:" + ref, f.err
}

func TestAdmin(t *testing.T) {
	f := &fakeAdmin{}
	c := admin.NewClient(start(t, &fake{}, func(c *Config) { c.Admin = f }).conn)
	got, err := c.Check(t.Context(), true)
	if d := cmp.Diff([]sandbox.Problem{{Kind: "mount", Subject: "/x", Detail: "no record"}}, got); err != nil || d != "" || !f.deep {
		t.Errorf("Check: %v, deep %t, %s", err, f.deep, d)
	}
	if err := errors.Join(c.EnableDefaultNetwork(t.Context()), c.RemoveDefaultNetwork(t.Context())); err != nil {
		t.Error(err)
	}
	var progress []image.Progress
	id, err := c.Pull(t.Context(), "ref", func(p image.Progress) { progress = append(progress, p) })
	if d := cmp.Diff([]image.Progress{{Layer: "l", Done: 1 << 40, Total: 2 << 40, Phase: "download"}}, progress); err != nil || id != "sha256:ref" || d != "" {
		t.Errorf("Pull: %q, %v, %s", id, err, d)
	}
	f.err = errs.New(errs.Conflict, "no")
	wantCode(t, c.EnableDefaultNetwork(t.Context()), codes.FailedPrecondition)
	_, err = c.Pull(t.Context(), "ref", nil)
	wantCode(t, err, codes.FailedPrecondition)
}
