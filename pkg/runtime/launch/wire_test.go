package launch

import (
	"os"
	"reflect"
	"testing"
)

func sample() *Request {
	adj := -998
	return &Request{
		Name: "pause", Cloneflags: 0x6c000000, UIDMaps: []IDMap{{0, 100000, 65536}}, GIDMaps: []IDMap{{0, 100000, 65536}, {65536, 7, 1}},
		Setgroups: true, Enter: []Enter{{2, 0x40000000}}, Program: 3, Cgroup: -1, Files: []int{0, 1, 2}, Nested: true, Gate: true,
		OOMScoreAdj: &adj, Rlimits: []Rlimit{{7, 1024, 1<<64 - 1}}, Terminal: true, StdioOwner: &Owner{1000, 1 << 31},
		Scheduler: []byte{8, 0, 0, 0, 3, 0, 0, 0}, Stop: true, Held: true, Notify: &Notify{Socket: 2, Message: []string{`{"pid":`, `}`}},
	}
}

func TestWire(t *testing.T) {
	for _, r := range []*Request{{Cgroup: -1}, sample()} {
		b, err := r.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got Request
		if err := got.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(&got, r) {
			t.Errorf("got %+v, %v, want %+v", got, err, r)
		}
		for n := range b {
			if err := got.UnmarshalBinary(b[:n]); err == nil {
				t.Errorf("%d of %d bytes are taken for a request", n, len(b))
			}
		}
		if err := got.UnmarshalBinary(append(b, 0)); err == nil {
			t.Error("a surplus byte is no error")
		}
		b[0]++
		if err := got.UnmarshalBinary(b); err == nil {
			t.Error("another version is no error")
		}
	}
	if _, err := (&Request{UIDMaps: make([]IDMap, maxMaps+1)}).MarshalBinary(); err == nil {
		t.Error("341 id maps are no error")
	}
}

func FuzzUnmarshal(f *testing.F) {
	b, _ := sample().MarshalBinary()
	f.Add(b)
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Request
		if r.UnmarshalBinary(data) != nil {
			return
		}
		again, err := r.MarshalBinary()
		if err != nil || string(again) != string(data) {
			t.Fatalf("%x decodes, and encodes to %x, %v", data, again, err)
		}
	})
}

func TestCheck(t *testing.T) {
	for _, r := range []Request{{Program: 2}, {Program: -1}, {Cgroup: 2}, {Cgroup: -2}, {Files: []int{-1}}, {Enter: []Enter{{2, 0}}}, {Held: true}} {
		if _, err := Start(&r, nil, [3]*os.File{}); err == nil {
			t.Errorf("%+v starts", r)
		}
	}
}
