package oci

import (
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// rawEnvAnnotation carries environment entries that JSON strings cannot: it maps their index to the bytes.
const rawEnvAnnotation = "io.cri-server.raw-env"

// Marshal returns the spec as the config.json of a bundle. Environment values are bytes and JSON's strings
// are not: an entry that is no UTF-8 stands there garbled, and whole in an annotation that Unmarshal reads.
// The spec is not changed.
func Marshal(spec *specs.Spec) ([]byte, error) {
	raw := make(map[int][]byte)
	if spec.Process != nil {
		for i, kv := range spec.Process.Env {
			if !utf8.ValidString(kv) {
				raw[i] = []byte(kv)
			}
		}
	}
	if len(raw) > 0 {
		value, err := json.Marshal(raw)
		if err != nil {
			return nil, err
		}
		c := *spec
		c.Annotations = map[string]string{rawEnvAnnotation: string(value)}
		for k, v := range spec.Annotations {
			c.Annotations[k] = v
		}
		spec = &c
	}
	return json.MarshalIndent(spec, "", "\t")
}

// Unmarshal reads what Marshal wrote, or any other config.json.
func Unmarshal(b []byte) (*specs.Spec, error) {
	spec := &specs.Spec{}
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	value, ok := spec.Annotations[rawEnvAnnotation]
	if !ok || spec.Process == nil {
		return spec, nil
	}
	var raw map[int][]byte
	if err := json.Unmarshal([]byte(value), &raw); err != nil {
		return nil, fmt.Errorf("config.json: annotation %s: %w", rawEnvAnnotation, err)
	}
	spec.Process.Env = slices.Clone(spec.Process.Env)
	for i, kv := range raw {
		if i < 0 || i >= len(spec.Process.Env) {
			return nil, fmt.Errorf("config.json: annotation %s: no environment entry %d", rawEnvAnnotation, i)
		}
		spec.Process.Env[i] = string(kv)
	}
	delete(spec.Annotations, rawEnvAnnotation)
	if len(spec.Annotations) == 0 {
		spec.Annotations = nil
	}
	return spec, nil
}
