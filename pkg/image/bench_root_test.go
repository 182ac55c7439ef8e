//go:build root

package image

import (
	"fmt"
	"testing"

	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
)

// BenchmarkRootfs is a container's share of this package: create, mount, unmount, remove.
func BenchmarkRootfs(b *testing.B) {
	for _, n := range []int{1, 20} {
		b.Run(fmt.Sprintf("layers=%d", n), func(b *testing.B) {
			r, s := it.NewRegistry(b), newStore(b, nil)
			var layers []it.Layer
			for i := range n {
				layers = append(layers, gz(it.File(fmt.Sprint(i), "x")))
			}
			r.Push("a", "v1", it.Image{Layers: layers})
			id := mustPull(b, s, r.Host()+"/a:v1")
			i := 0
			for b.Loop() {
				name := fmt.Sprint("c", i)
				i++
				if err := s.CreateRootfs(ctx, name, id, 0, 0); err != nil {
					b.Fatal(err)
				}
				mnt, err := s.MountRootfs(ctx, name, nil)
				if err != nil {
					b.Fatal(err)
				}
				mnt.Close()
				if err := s.RemoveRootfs(ctx, name); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPull is a small image from loopback that is not there yet.
func BenchmarkPull(b *testing.B) {
	r, s := it.NewRegistry(b), newStore(b, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	for b.Loop() {
		id := mustPull(b, s, r.Host()+"/a:v1")
		if err := s.Remove(ctx, id); err != nil {
			b.Fatal(err)
		}
	}
}
