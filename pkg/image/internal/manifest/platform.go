package manifest

import (
	"bufio"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Platform is what a machine can run: the operating system, the architecture and its variants, best first.
// The last variant is "", where an image that names none fits.
type Platform struct {
	OS, Arch string
	Variants []string
}

// Host is the platform of this machine. For amd64 the variants are the levels v1 to v4 that the processor
// has, so that an image built for v3 is preferred where it runs and never chosen where it does not.
var Host = sync.OnceValue(func() Platform {
	return Platform{OS: "linux", Arch: runtime.GOARCH, Variants: variants(runtime.GOARCH)}
})

// ParsePlatform reads "linux/arm64", "linux/arm/v7"; "" is this machine.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return Host(), nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return Platform{}, errs.New(errs.Invalid, "platform %q: want os/architecture[/variant]", clip(s))
	}
	p := Platform{OS: parts[0], Arch: parts[1], Variants: []string{""}}
	switch {
	case len(parts) == 3:
		p.Variants = []string{parts[2], ""}
	case p.Arch == "arm64":
		p.Variants = []string{"v8", ""}
	case p.Arch == "amd64":
		p.Variants = []string{"v1", ""}
	case p.Arch == "arm":
		p.Variants = []string{"v7", "v6", "v5", ""}
	}
	return p, nil
}

// String is "os/architecture".
func (p Platform) String() string { return p.OS + "/" + p.Arch }

func variants(arch string) []string {
	switch arch {
	case "amd64":
		out := []string{""}
		for level := 1; level <= amd64Level(cpuFlags()); level++ {
			out = slices.Insert(out, 0, "v"+strconv.Itoa(level))
		}
		return out
	case "arm64":
		return []string{"v8", ""}
	case "arm":
		return []string{"v7", "v6", "v5", ""}
	}
	return []string{""}
}

// amd64Levels are the flags of /proc/cpuinfo that each level of the x86-64 psABI adds.
var amd64Levels = [][]string{
	{"cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"},
	{"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
	{"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
	{"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}

// amd64Level is the highest level all of whose flags are there; at least 1, since this code runs.
func amd64Level(flags map[string]bool) int {
	level := 0
	for _, need := range amd64Levels {
		for _, f := range need {
			if !flags[f] {
				return max(level, 1)
			}
		}
		level++
	}
	return level
}

func cpuFlags() map[string]bool {
	flags := map[string]bool{}
	f, err := os.Open("/proc/cpuinfo") //nolint:forbidigo // a file of the kernel
	if err != nil {
		return flags
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<16)
	for sc.Scan() {
		if name, list, ok := strings.Cut(sc.Text(), ":"); ok && strings.TrimSpace(name) == "flags" {
			for _, w := range strings.Fields(list) {
				flags[w] = true
			}
			break
		}
	}
	return flags
}

// rank is how well q fits: 0 is best, -1 not at all.
func (p Platform) rank(q *ocispec.Platform) int {
	if q.OS != p.OS || normArch(q.Architecture) != p.Arch || len(q.OSFeatures) > 0 {
		return -1
	}
	v := q.Variant
	if q.Architecture == "aarch64" && v == "" {
		v = "v8"
	}
	return slices.Index(p.Variants, v)
}

func normArch(a string) string {
	switch a {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return a
}

// Candidates are the entries of an index to try, best first: those whose platform fits, or, when none
// says that it does, those that name no platform (their configs will tell).
func (p Platform) Candidates(x *ocispec.Index) []ocispec.Descriptor {
	type ranked struct {
		rank int
		d    ocispec.Descriptor
	}
	var fit []ranked
	var silent []ocispec.Descriptor
	for _, d := range x.Manifests {
		if _, known := kinds[d.MediaType]; !known && d.MediaType != "" {
			continue
		}
		if d.Platform == nil {
			silent = append(silent, d)
		} else if r := p.rank(d.Platform); r >= 0 {
			fit = append(fit, ranked{r, d})
		}
	}
	if len(fit) == 0 {
		return silent
	}
	slices.SortStableFunc(fit, func(a, b ranked) int { return a.rank - b.rank })
	out := make([]ocispec.Descriptor, len(fit))
	for i, f := range fit {
		out[i] = f.d
	}
	return out
}

// Fits refuses a config that is for another platform. A config that names none fits: hand-made images do
// not.
func (p Platform) Fits(c *ocispec.Image) error {
	if c.OS == "" && c.Architecture == "" {
		return nil
	}
	q := c.Platform
	if q.OS == "" {
		q.OS = p.OS
	}
	if q.Architecture == "" {
		q.Architecture = p.Arch
	}
	q.OSFeatures = nil
	if p.rank(&q) < 0 {
		return errs.New(errs.NotFound, "image is for %s/%s%s, this machine is %s: %w", clip(q.OS), clip(q.Architecture), clip(q.Variant), p, ErrNoPlatform)
	}
	return nil
}
