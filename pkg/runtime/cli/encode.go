package cli

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// object is a JSON object being written. What encoding/json would do for the few records of a container takes it longer than
// the rest of a record: it first makes itself an encoder of the type. A test holds this to the same output.
type object []byte

// name begins a member.
func (o *object) name(n string) {
	*o = append(*o, ',', '"')
	*o = append(append(*o, n...), '"', ':')
}

// quote writes a string as encoding/json does.
func (o *object) quote(s string) {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`"\<>&`, r) }) {
		b, _ := json.Marshal(s) // a string can be encoded, whatever it is
		*o = append(*o, b...)
		return
	}
	*o = append(append(append(*o, '"'), s...), '"')
}

func (o *object) text(n, s string) {
	o.name(n)
	o.quote(s)
}

// number, yes and texts leave out what is empty.
func (o *object) number(n string, v uint64) {
	if v != 0 {
		o.name(n)
		*o = strconv.AppendUint(*o, v, 10)
	}
}

func (o *object) yes(n string, v bool) {
	if v {
		o.name(n)
		*o = append(*o, "true"...)
	}
}

func (o *object) texts(n string, list []string) {
	if len(list) == 0 {
		return
	}
	o.name(n)
	for i, s := range list {
		*o = append(*o, "[,"[min(i, 1)])
		o.quote(s)
	}
	*o = append(*o, ']')
}

func (o *object) dict(n string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	o.name(n)
	for i, k := range slices.Sorted(maps.Keys(m)) {
		*o = append(*o, "{,"[min(i, 1)])
		o.quote(k)
		*o = append(*o, ':')
		o.quote(m[k])
	}
	*o = append(*o, '}')
}

// value writes what is rarely there.
func (o *object) value(n string, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		o.name(n)
		*o = append(*o, b...)
	}
	return err
}

// end closes the object.
func (o object) end() []byte {
	if len(o) == 0 {
		return []byte("{}")
	}
	o[0] = '{'
	return append(o, '}')
}

// encode is the text of process.json.
func (p *process) encode() []byte {
	o := make(object, 0, 256)
	p.members(&o)
	return o.end()
}

func (p *process) members(o *object) {
	o.number("pid", uint64(p.Pid))
	o.number("start", p.Start)
	o.texts("stdio", p.Stdio)
}

// encode is the text of state.json.
func (r *record) encode() ([]byte, error) {
	o := make(object, 0, 1024)
	o.name("version")
	o = strconv.AppendInt(o, int64(r.Version), 10)
	o.text("id", r.ID)
	o.text("bundle", r.Bundle)
	o.text("rootfs", r.Rootfs)
	o.name("created")
	o = append(r.Created.AppendFormat(append(o, '"'), time.RFC3339Nano), '"')
	o.dict("annotations", r.Annotations)
	o.text("boot", r.Boot)
	o.text("cgroup", r.Cgroup)
	if r.Unit != nil {
		if err := o.value("unit", r.Unit); err != nil {
			return nil, err
		}
	}
	o.yes("noCgroup", r.NoCgroup)
	o.texts("above", r.Above)
	r.members(&o)
	o.yes("ownPid", r.OwnPID)
	o.yes("noPivot", r.NoPivot)
	o.yes("noNewKeyring", r.NoKeyring)
	o.yes("noProcess", r.NoProcess)
	o.number("preserved", uint64(r.Extra))
	o.yes("onHost", r.OnHost)
	o.number("stacked", uint64(r.Stacked))
	if r.Rdt != nil {
		if err := o.value("rdt", r.Rdt); err != nil {
			return nil, err
		}
	}
	return o.end(), nil
}
