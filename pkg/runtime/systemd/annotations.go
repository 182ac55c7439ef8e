package systemd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cri-server/cri-server/pkg/errs"
)

// annotationPrefix begins the annotations that name a property of the unit.
const annotationPrefix = "org.systemd.property."

// Annotations reads the properties that a configuration asks for: "org.systemd.property.NAME" with a value in
// GVariant's text format, as runc takes them. A name that ends in Sec is a number of seconds and becomes USec.
// Others decide what is in a configuration's annotations than may command systemd: only for who writes both.
func Annotations(annotations map[string]string) ([]Property, error) {
	var out []Property
	for k, v := range annotations {
		name, ok := strings.CutPrefix(k, annotationPrefix)
		if !ok {
			continue
		}
		if len(name) < 3 {
			return nil, errs.New(errs.Invalid, "annotation %s name incorrect: too short", k)
		}
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return nil, errs.New(errs.Invalid, "annotation %s name incorrect: contains non-alphabetic character", k)
		}
		value, err := ParseValue(v)
		if err == nil {
			name, value, err = microseconds(name, value)
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "annotation %s=%s value parse error: %w", k, v, err)
		}
		out = append(out, Property{name, value})
	}
	slices.SortFunc(out, func(a, b Property) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// microseconds turns a property of seconds, as systemd's manual calls it, into the one of the bus.
func microseconds(name string, v Value) (string, Value, error) {
	stem, ok := strings.CutSuffix(name, "Sec")
	if !ok || stem == "" || stem[len(stem)-1] < 'a' || stem[len(stem)-1] > 'z' {
		return name, v, nil
	}
	const million = 1_000_000
	var n uint64
	switch x := v.V.(type) {
	case byte:
		n = uint64(x) * million
	case int16:
		n = uint64(x) * million
	case uint16:
		n = uint64(x) * million
	case int32:
		n = uint64(x) * million
	case uint32:
		n = uint64(x) * million
	case int64:
		n = uint64(x) * million
	case uint64:
		n = x * million
	case float64:
		n = uint64(x * million)
	default:
		return "", v, fmt.Errorf("not a number")
	}
	return stem + "USec", Value{"t", n}, nil
}
