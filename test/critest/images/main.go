// Command images serves look-alikes of the images that the CRI conformance suite asks for, on a loopback
// registry over plain HTTP, so that the suite runs without a network:
//
//	images -busybox PATH -helper PATH [-listen 127.0.0.1:5055]
//
// The server under test must send every registry there (hack/up: CRI_MIRROR=http://127.0.0.1:5055). The
// busybox must be a dynamic one (Debian's busybox, not busybox-static): the static one's shell runs
// applets by itself, which defeats the suite's masked paths.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cri-server/cri-server/test/registry"
)

func main() {
	busybox := flag.String("busybox", "/bin/busybox", "a dynamic busybox")
	helper := flag.String("helper", "", "the compiled test/critest/helper")
	listen := flag.String("listen", "127.0.0.1:5055", "address to serve on")
	flag.Parse()
	if err := run(*busybox, *helper, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(busybox, helper, listen string) error {
	all, err := allImages(busybox, helper)
	if err != nil {
		return err
	}
	r, err := registry.Start(listen)
	if err != nil {
		return err
	}
	for _, im := range all {
		if err := im.push(r.Address); err != nil {
			return err
		}
	}
	fmt.Println("ready on", r.Address)
	return <-r.Ended
}

// push writes the image to the registry at address under all of its names, without their hosts.
func (im *image) push(address string) error {
	content, err := im.build()
	if err != nil {
		return fmt.Errorf("%s: %w", im.names[0], err)
	}
	for _, n := range im.names {
		ref, err := name.ParseReference(n)
		if err != nil {
			return err
		}
		local, err := name.ParseReference(address+"/"+ref.Context().RepositoryStr()+":"+ref.Identifier(), name.Insecure)
		if err != nil {
			return err
		}
		if content.index != nil {
			err = remote.WriteIndex(local, content.index)
		} else {
			err = remote.Write(local, content.image)
		}
		if err != nil {
			return fmt.Errorf("push %s: %w", n, err)
		}
	}
	return nil
}
