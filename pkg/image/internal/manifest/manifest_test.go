package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

var (
	hexa = strings.Repeat("0123456789abcdef", 4)
	dig  = "sha256:" + hexa
)

func desc(mt string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":10}`, mt, dig)
}

func manifestText(mt, config string, layers ...string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, mt, config, strings.Join(layers, ","))
}

func TestParse(t *testing.T) {
	conf, gz := desc(ocispec.MediaTypeImageConfig), desc(ocispec.MediaTypeImageLayerGzip)
	oci := manifestText(ocispec.MediaTypeImageManifest, conf, gz)
	docker := manifestText(dockerManifest, desc(dockerConfig), desc("application/vnd.docker.image.rootfs.diff.tar.gzip"))
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ocispec.MediaTypeImageIndex, desc(ocispec.MediaTypeImageManifest))
	silent := fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s]}`, conf, gz)
	for name, c := range map[string]struct {
		body, served string
		kind         errs.Kind // Unknown: it parses
	}{
		"oci":                        {oci, ocispec.MediaTypeImageManifest, 0},
		"docker":                     {docker, dockerManifest, 0},
		"index":                      {index, ocispec.MediaTypeImageIndex, 0},
		"served as json":             {oci, "application/json", 0},
		"served as nothing":          {docker, "", 0},
		"oci without mediaType":      {silent, ocispec.MediaTypeImageManifest, 0},
		"nothing says what it is":    {silent, "", 0},
		"no layers":                  {manifestText(ocispec.MediaTypeImageManifest, conf), "", 0},
		"both at once":               {fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[],"manifests":[]}`, conf), ocispec.MediaTypeImageManifest, errs.Invalid},
		"both, config only":          {fmt.Sprintf(`{"schemaVersion":2,"config":%s,"manifests":[]}`, conf), ocispec.MediaTypeImageIndex, errs.Invalid},
		"both, layers only":          {`{"schemaVersion":2,"layers":[],"manifests":[]}`, ocispec.MediaTypeImageIndex, errs.Invalid},
		"served as the other":        {oci, ocispec.MediaTypeImageIndex, errs.Invalid},
		"calls itself the other":     {strings.Replace(oci, "manifest.v1", "index.v1", 1), "", errs.Invalid},
		"index as manifest":          {index, ocispec.MediaTypeImageManifest, errs.Invalid},
		"mediaType mismatch":         {oci, dockerManifest, errs.Invalid},
		"schema 1":                   {`{"schemaVersion":1,"fsLayers":[]}`, "application/vnd.docker.distribution.manifest.v1+prettyjws", errs.Unsupported},
		"schema 3":                   {strings.Replace(oci, `"schemaVersion":2`, `"schemaVersion":3`, 1), "", errs.Invalid},
		"not json":                   {"<html>", "", errs.Invalid},
		"empty":                      {"", "", errs.Invalid},
		"an array":                   {"[]", "", errs.Invalid},
		"neither":                    {`{"schemaVersion":2}`, "", errs.Invalid},
		"huge":                       {strings.Repeat(" ", MaxManifest) + oci, "", errs.Invalid},
		"other media type":           {silent, "application/vnd.example+json", errs.Unsupported},
		"artifact":                   {manifestText(ocispec.MediaTypeImageManifest, desc("application/vnd.oci.empty.v1+json"), gz), "", errs.Unsupported},
		"foreign layer":              {manifestText(ocispec.MediaTypeImageManifest, conf, desc("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")), "", errs.Unsupported},
		"docker foreign layer":       {manifestText(dockerManifest, desc(dockerConfig), desc("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), "", errs.Unsupported},
		"unknown layer":              {manifestText(ocispec.MediaTypeImageManifest, conf, desc("application/vnd.example.layer")), "", errs.Unsupported},
		"upper case digest":          {strings.Replace(oci, hexa, strings.ToUpper(hexa), 1), "", errs.Invalid},
		"climbing digest":            {strings.Replace(oci, hexa, "../"+hexa[3:], 1), "", errs.Invalid},
		"short digest":               {strings.Replace(oci, hexa, hexa[1:], 2), "", errs.Invalid},
		"negative size":              {strings.Replace(oci, `"size":10`, `"size":-1`, 1), "", errs.Invalid},
		"huge config":                {strings.Replace(oci, `"size":10`, fmt.Sprintf(`"size":%d`, MaxConfig+1), 1), "", errs.Invalid},
		"size is a string":           {strings.Replace(oci, `"size":10`, `"size":"10"`, 1), "", errs.Invalid},
		"too many layers":            {manifestText(ocispec.MediaTypeImageManifest, conf, strings.Split(strings.Repeat(gz+"\n", MaxLayers)+gz, "\n")...), "", errs.Invalid},
		"index with a climbing name": {strings.Replace(index, hexa, strings.Repeat("../", 10), 1), "", errs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			doc, err := Parse([]byte(c.body), c.served)
			switch {
			case c.kind == errs.Unknown && (err != nil || (doc.Manifest == nil) == (doc.Index == nil)):
				t.Errorf("%+v, %v", doc, err)
			case c.kind != errs.Unknown && errs.KindOf(err) != c.kind:
				t.Errorf("%v (%v), want %v", err, errs.KindOf(err), c.kind)
			}
		})
	}
}

func TestParseConfig(t *testing.T) {
	m := &ocispec.Manifest{Layers: make([]ocispec.Descriptor, 2)}
	other := "sha256:" + strings.Repeat("f", 64)
	c, err := ParseConfig([]byte(fmt.Sprintf(`{"rootfs":{"type":"layers","diff_ids":[%q,%q]}}`, dig, other)), m)
	if err != nil {
		t.Fatal(err)
	}
	// The chain of the second is the hash of "<first> <second>", by the image specification.
	if len(c.ChainIDs) != 2 || c.ChainIDs[0] != dig || c.ChainIDs[1] == other || len(c.ChainIDs[1]) != 71 {
		t.Errorf("chain ids %v", c.ChainIDs)
	}
	for name, body := range map[string]string{
		"one diff id":  fmt.Sprintf(`{"rootfs":{"type":"layers","diff_ids":[%q]}}`, dig),
		"no rootfs":    `{}`,
		"other type":   fmt.Sprintf(`{"rootfs":{"type":"x","diff_ids":[%q,%q]}}`, dig, dig),
		"bad diff id":  fmt.Sprintf(`{"rootfs":{"type":"layers","diff_ids":[%q,"sha256:../x"]}}`, dig),
		"not json":     `x`,
		"env a string": fmt.Sprintf(`{"config":{"Env":"x"},"rootfs":{"type":"layers","diff_ids":[%q,%q]}}`, dig, dig),
		"too large":    strings.Repeat(" ", MaxConfig) + "{}",
	} {
		if _, err := ParseConfig([]byte(body), m); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := ParseConfig([]byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`), &ocispec.Manifest{}); err != nil || len(c.ChainIDs) != 0 {
		t.Errorf("no layers: %v, %v", c, err)
	}
}

func TestCandidates(t *testing.T) {
	p := func(os, arch, variant string) *ocispec.Platform {
		return &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
	}
	entry := func(name string, p *ocispec.Platform) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Platform: p, Annotations: map[string]string{"n": name}}
	}
	amd64 := Platform{"linux", "amd64", []string{"v3", "v2", "v1", ""}}
	arm := Platform{"linux", "arm", []string{"v7", "v6", "v5", ""}}
	for name, c := range map[string]struct {
		p    Platform
		in   []ocispec.Descriptor
		want string
	}{
		"plain":            {amd64, []ocispec.Descriptor{entry("w", p("windows", "amd64", "")), entry("a", p("linux", "arm64", "")), entry("x", p("linux", "amd64", ""))}, "x"},
		"best variant":     {amd64, []ocispec.Descriptor{entry("0", p("linux", "amd64", "")), entry("4", p("linux", "amd64", "v4")), entry("2", p("linux", "amd64", "v2")), entry("3", p("linux", "amd64", "v3"))}, "320"},
		"other spelling":   {amd64, []ocispec.Descriptor{entry("x", p("linux", "x86_64", ""))}, "x"},
		"arm goes down":    {arm, []ocispec.Descriptor{entry("5", p("linux", "arm", "v5")), entry("8", p("linux", "arm", "v8")), entry("6", p("linux", "arm", "v6"))}, "65"},
		"attestations":     {amd64, []ocispec.Descriptor{entry("u", p("unknown", "unknown", "")), entry("x", p("linux", "amd64", ""))}, "x"},
		"silent":           {amd64, []ocispec.Descriptor{entry("s", nil), entry("t", nil)}, "st"},
		"silent is second": {amd64, []ocispec.Descriptor{entry("s", nil), entry("x", p("linux", "amd64", ""))}, "x"},
		"nothing":          {amd64, []ocispec.Descriptor{entry("a", p("linux", "arm64", "v8"))}, ""},
	} {
		got := ""
		for _, d := range c.p.Candidates(&ocispec.Index{Manifests: c.in}) {
			got += d.Annotations["n"]
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestFits(t *testing.T) {
	amd64 := Platform{"linux", "amd64", []string{"v1", ""}}
	conf := func(os, arch string) *ocispec.Image {
		return &ocispec.Image{Platform: ocispec.Platform{OS: os, Architecture: arch}}
	}
	for _, c := range []*ocispec.Image{conf("", ""), conf("linux", "amd64"), conf("linux", ""), conf("", "amd64")} {
		if err := amd64.Fits(c); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []*ocispec.Image{conf("linux", "arm64"), conf("windows", "amd64")} {
		if err := amd64.Fits(c); !errors.Is(err, ErrNoPlatform) {
			t.Errorf("%+v: %v", c.Platform, err)
		}
	}
}

func TestAMD64Level(t *testing.T) {
	flags := map[string]bool{}
	if l := amd64Level(flags); l != 1 {
		t.Errorf("no flags: v%d", l)
	}
	for i, level := range amd64Levels {
		for _, f := range level {
			flags[f] = true
		}
		if l := amd64Level(flags); l != i+1 {
			t.Errorf("with the flags of v%d: v%d", i+1, l)
		}
	}
	delete(flags, "bmi2")
	if l := amd64Level(flags); l != 2 {
		t.Errorf("without bmi2: v%d", l)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(manifestText(ocispec.MediaTypeImageManifest, desc(ocispec.MediaTypeImageConfig), desc(ocispec.MediaTypeImageLayerGzip))), ocispec.MediaTypeImageManifest)
	f.Add([]byte(fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s]}`, desc(ocispec.MediaTypeImageManifest))), "")
	f.Fuzz(func(t *testing.T, body []byte, served string) {
		doc, err := Parse(body, served)
		if err != nil {
			return
		}
		if (doc.Manifest == nil) == (doc.Index == nil) {
			t.Fatal("neither or both")
		}
		var both struct{ Layers, Manifests json.RawMessage }
		if json.Unmarshal(body, &both) == nil && len(both.Layers) > 4 && len(both.Manifests) > 4 {
			t.Fatal("it is two things")
		}
		if doc.Manifest != nil {
			for _, l := range doc.Manifest.Layers {
				if strings.ContainsAny(string(l.Digest), "./") || l.Size < 0 {
					t.Fatalf("layer %+v", l)
				}
			}
		}
	})
}
