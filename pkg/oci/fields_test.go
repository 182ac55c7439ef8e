package oci

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every field of the two configs is known: testdata/fields.txt says where each one acts. A new version of
// the CRI that adds a field fails here until somebody decides what it does.
func TestEveryFieldIsKnown(t *testing.T) {
	f, err := os.Open("testdata/fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	known := map[string]bool{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		name, where, ok := strings.Cut(sc.Text(), "\t")
		if strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		if !ok || where == "" || known[name] {
			t.Errorf("line %q", sc.Text())
		}
		known[name] = true
	}
	seen := map[string]bool{}
	for _, m := range []protoreflect.Message{(&cri.ContainerConfig{}).ProtoReflect(), (&cri.PodSandboxConfig{}).ProtoReflect()} {
		walkFields(m.Descriptor(), seen)
	}
	for name := range seen {
		if !known[name] {
			t.Errorf("nobody has decided what %s does", name)
		}
	}
	for name := range known {
		if !seen[name] {
			t.Errorf("the CRI has no field %s", name)
		}
	}
}

func walkFields(m protoreflect.MessageDescriptor, seen map[string]bool) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		name := strings.TrimPrefix(string(f.FullName()), "runtime.v1.")
		if seen[name] || f.ContainingMessage().IsMapEntry() || strings.Contains(name, "Windows") || strings.HasSuffix(name, ".windows") {
			continue
		}
		seen[name] = true
		if f.Message() != nil {
			walkFields(f.Message(), seen)
		}
	}
}
