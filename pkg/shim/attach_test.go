package shim

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestAttach(t *testing.T) {
	c := dial(t, inProcess(t))
	ctx := testContext(t)
	b := newBox(t, "c1", "cat;out:end of input")
	b.req.Stdin, b.req.StdinOnce = true, true
	if _, err := c.Start(ctx, b.req); err != nil {
		t.Fatal(err)
	}
	stdin, stdout, stderr, err := c.Attach(ctx, "c1", AttachRequest{Stdin: true, Stdout: true, Stderr: true})
	if err != nil || stdin == nil || stdout == nil || stderr == nil {
		t.Fatalf("attach: %v %v %v %v", stdin, stdout, stderr, err)
	}
	_, watcher, _, err := c.Attach(ctx, "c1", AttachRequest{Stdout: true}) // fan-out
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "hello\n"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*os.File{stdout, watcher} {
		if line, err := bufio.NewReader(r).ReadString('\n'); line != "hello\n" {
			t.Errorf("attached client read %q, %v", line, err)
		}
	}
	watcher.Close() // its detach changes nothing: it had no stdin
	stdin.Close()   // stdin_once: this detach ends the input
	rest, err := io.ReadAll(stdout)
	if string(rest) != "end of input\n" || err != nil {
		t.Errorf("after stdin ended: %q, %v", rest, err)
	}
	if rest, err := io.ReadAll(stderr); len(rest) != 0 || err != nil {
		t.Errorf("stderr: %q, %v", rest, err)
	}
	waitExit(t, c, "c1")
	if got := b.log(t, "0.log"); got != "stdout F hello\nstdout F end of input\n" {
		t.Errorf("log %q", got)
	}
	if _, _, _, err := c.Attach(ctx, "c1", AttachRequest{Stdout: true}); !errs.Is(err, errs.Conflict) {
		t.Errorf("attach to an exited container: %v", err)
	}
}

func TestStdinWithoutOnceSurvivesDetach(t *testing.T) {
	c := dial(t, inProcess(t))
	ctx := testContext(t)
	b := newBox(t, "c1", "cat")
	b.req.Stdin = true
	if _, err := c.Start(ctx, b.req); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one\n", "two\n"} {
		stdin, stdout, _, err := c.Attach(ctx, "c1", AttachRequest{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(stdin, text); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != text {
			t.Errorf("read %q, %v", line, err)
		}
		stdin.Close()
		stdout.Close()
	}
	for range 2 {
		if err := c.CloseStdin(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
	}
	waitExit(t, c, "c1")
	if got := b.log(t, "0.log"); got != "stdout F one\nstdout F two\n" {
		t.Errorf("log %q", got)
	}
}

func TestSlowClientHoldsNobodyUp(t *testing.T) {
	c := dial(t, inProcess(t))
	ctx := testContext(t)
	const lines = 400000 // several times what a pipe takes
	b := newBox(t, "c1", fmt.Sprintf("gate;count:%d;exit:0", lines))
	if _, err := c.Start(ctx, b.req); err != nil {
		t.Fatal(err)
	}
	_, stdout, _, err := c.Attach(ctx, "c1", AttachRequest{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	if err := c.Release(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c, "c1") // nobody has read stdout
	checkLines(t, b.log(t, "0.log"), lines)
	got, err := io.ReadAll(stdout)
	if err != nil || !strings.HasPrefix(string(got), "line 0\nline 1\n") {
		t.Errorf("the slow client got %d bytes, %v", len(got), err)
	}
}
