//go:build root

package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestTornRecords is a disk that loses or garbles the record of a pod, or of one of its containers, with the machine
// running on: the next start ends what the record named, and nothing of it is left for check or hack/down to find.
func TestTornRecords(t *testing.T) {
	for _, record := range []string{"pod.json", "containers/%s.json"} {
		for how, harm := range map[string]func(path string) error{
			"truncated": func(path string) error { return os.Truncate(path, 20) },
			"empty":     func(path string) error { return os.Truncate(path, 0) },
			"garbled": func(path string) error {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				b[len(b)/2] ^= 0x20
				return os.WriteFile(path, b, 0o600)
			},
			"lost": os.Remove,
		} {
			t.Run(filepath.Dir(record)+" "+how, func(t *testing.T) {
				n := newNode(t)
				other := n.bystander()
				config := n.podConfig("torn")
				pod := n.pod(config)
				id := n.run(pod, config, "c", "exec sleep 1000")
				path := n.path("lib/pods", pod, record)
				if record != "pod.json" {
					path = n.path("lib/pods", pod, fmt.Sprintf(record, id))
				}
				n.kill()
				if err := harm(path); err != nil {
					t.Fatal(err)
				}
				if out, err := n.cli("check"); err == nil {
					t.Errorf("check without a server sees nothing: %s", out)
				}
				n.up("")
				n.check()
				for _, c := range n.containers() {
					if c.Id == id {
						t.Error("the container is listed")
					}
				}
				other.unharmed()
				n.removeAll()
			})
		}
	}
}
