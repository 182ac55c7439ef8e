// Command bench drives any CRI socket with the calls a kubelet makes and prints what they cost.
//
//	bench -socket unix:///run/a.sock [-vs unix:///run/b.sock] [-n 100] [-clients 1,8] [-image REF]
//
// With two sockets it alternates between them cycle by cycle in one run, so that a machine that is slow
// for a while is slow for both, and prints ratios. A cycle is RunPodSandbox, CreateContainer,
// StartContainer, ExecSync, List, StopPodSandbox, RemovePodSandbox, with a container that ends on TERM.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
)

type options struct {
	sockets    []string
	n          int
	clients    []int
	image      string
	command    []string
	cgroup     string
	memoryPods int
	hostNet    bool
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := &options{}
	socket := fs.String("socket", "", "CRI `endpoint` to measure")
	vs := fs.String("vs", "", "a second `endpoint` to alternate with")
	clients := fs.String("clients", "1,8", "numbers of concurrent clients")
	command := fs.String("command", "sleep 1000", "the container's command; it must end on TERM or be killed")
	fs.IntVar(&o.n, "n", 100, "cycles of each socket for each number of clients")
	fs.StringVar(&o.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "image of the containers")
	fs.StringVar(&o.cgroup, "cgroup-parent", "", "cgroup parent of the pods")
	fs.IntVar(&o.memoryPods, "memory-pods", 20, "pods to keep for the memory figures, 0 for none")
	fs.BoolVar(&o.hostNet, "host-network", false, "pods in the host's network namespace")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *socket == "" || fs.NArg() > 0 {
		return nil, fmt.Errorf("usage: bench -socket ENDPOINT [-vs ENDPOINT] [flags]; see -h")
	}
	o.sockets = []string{*socket}
	if *vs != "" {
		o.sockets = append(o.sockets, *vs)
	}
	o.command = strings.Fields(*command)
	for c := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(c)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-clients %q: want positive numbers and commas", *clients)
		}
		o.clients = append(o.clients, n)
	}
	return o, nil
}

func run(ctx context.Context, o *options) error {
	var targets []*target
	for _, s := range o.sockets {
		t, err := dial(ctx, s, o)
		if err != nil {
			return err
		}
		defer t.conn.Close()
		targets = append(targets, t)
		fmt.Printf("%s: %s (pid %d)\n", t.name, s, t.pid)
	}
	for _, c := range o.clients {
		for _, t := range targets { // warm up: page cache, first bridge, first layers
			if _, err := t.cycle(ctx); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
		results, err := alternate(ctx, targets, c, o.n)
		if err != nil {
			return err
		}
		printTable(os.Stdout, c, targets, results)
	}
	if o.memoryPods > 0 {
		return memory(ctx, targets, o.memoryPods)
	}
	return nil
}
