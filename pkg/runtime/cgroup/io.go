package cgroup

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// IOWeight converts v1's blkio weight (10 to 1000) to v2's io.weight (1 to 10000); 0 is 0, not set.
func IOWeight(blkio uint16) uint64 {
	if blkio == 0 {
		return 0
	}
	return 1 + (uint64(max(blkio, 10))-10)*9999/990
}

func setIO(t *txn, res *specs.LinuxResources) error {
	b := res.BlockIO
	if deref(b.Weight) == 0 && deref(b.LeafWeight) == 0 && len(b.WeightDevice) == 0 && !throttles(b) {
		return nil
	}
	for _, w := range append([]specs.LinuxWeightDevice{{Weight: b.Weight, LeafWeight: b.LeafWeight}}, b.WeightDevice...) {
		for _, v := range []uint16{deref(w.Weight), deref(w.LeafWeight)} {
			if v != 0 && (v < 10 || v > 1000) {
				return errs.New(errs.Invalid, "block IO weight %d: it is 10 to 1000", v)
			}
		}
	}
	if t.group.host.tree("blkio") != nil {
		d, err := t.dir("blkio")
		if err != nil {
			return err
		}
		return setBlkio(t, d, b)
	}
	d, err := t.dir("io")
	if err != nil {
		return err
	}
	return setIO2(t, d, b)
}

func throttles(b *specs.LinuxBlockIO) bool {
	return len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0
}

func device(d specs.LinuxBlockIODevice) string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// setBlkio writes v1's files. Weights belong to a scheduler: BFQ's today, CFQ's before Linux 5.
func setBlkio(t *txn, d dir, b *specs.LinuxBlockIO) error {
	weight := "blkio.weight"
	if !d.has(weight) {
		weight = "blkio.bfq.weight"
	}
	if v := deref(b.Weight); v != 0 {
		if err := weightFile(d, weight, t.set(d, weight, strconv.Itoa(int(v)))); err != nil {
			return err
		}
	}
	if v := deref(b.LeafWeight); v != 0 {
		if err := weightFile(d, "blkio.leaf_weight", t.set(d, "blkio.leaf_weight", strconv.Itoa(int(v)))); err != nil {
			return err
		}
	}
	for _, w := range b.WeightDevice {
		for file, v := range map[string]uint16{weight + "_device": deref(w.Weight), "blkio.leaf_weight_device": deref(w.LeafWeight)} {
			if v == 0 {
				continue
			}
			if err := weightFile(d, file, t.setKeyed(d, file, device(w.LinuxBlockIODevice), strconv.Itoa(int(v)), "0")); err != nil {
				return err
			}
		}
	}
	for _, l := range []struct {
		file string
		list []specs.LinuxThrottleDevice
	}{
		{"blkio.throttle.read_bps_device", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", b.ThrottleWriteIOPSDevice},
	} {
		for _, r := range l.list {
			if err := t.setKeyed(d, l.file, device(r.LinuxBlockIODevice), strconv.FormatUint(r.Rate, 10), "0"); err != nil {
				return err
			}
		}
	}
	return nil
}

// weightFile says what a missing weight file means.
func weightFile(d dir, file string, err error) error {
	if unset(err) {
		return errs.New(errs.Unsupported, "block IO weight: this kernel has no %s. Load the BFQ scheduler", file)
	}
	return err
}

func setIO2(t *txn, d dir, b *specs.LinuxBlockIO) error {
	if deref(b.LeafWeight) != 0 {
		return errs.New(errs.Unsupported, "block IO leafWeight: cgroup v2 has none")
	}
	convert := func(v uint16) string { return strconv.FormatUint(IOWeight(v), 10) }
	weight := "io.weight"
	if d.has("io.bfq.weight") { // BFQ's scale is v1's
		weight, convert = "io.bfq.weight", func(v uint16) string { return strconv.Itoa(int(v)) }
	}
	if v := deref(b.Weight); v != 0 {
		if err := weightFile(d, weight, t.setKeyed(d, weight, "default", convert(v), "100")); err != nil {
			return err
		}
	}
	for _, w := range b.WeightDevice {
		if deref(w.LeafWeight) != 0 {
			return errs.New(errs.Unsupported, "block IO leafWeight of %s: cgroup v2 has none", device(w.LinuxBlockIODevice))
		}
		if v := deref(w.Weight); v != 0 {
			if err := weightFile(d, weight, t.setKeyed(d, weight, device(w.LinuxBlockIODevice), convert(v), "default")); err != nil {
				return err
			}
		}
	}
	for _, l := range []struct {
		key  string
		list []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, r := range l.list {
			value := l.key + "=max"
			if r.Rate != 0 { // 0 lifts the limit on v1
				value = l.key + "=" + strconv.FormatUint(r.Rate, 10)
			}
			if err := t.setKeyed(d, "io.max", device(r.LinuxBlockIODevice), value, noIOMax); err != nil {
				return err
			}
		}
	}
	return nil
}
