package stats

import (
	"math"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The names, labels and meanings are cAdvisor's, which dashboards and alerts are written for.

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
)

// ofUsage is a row with one value from the cgroup, of pods and containers.
func ofUsage(name, help string, kind cri.MetricType, f func(u *Usage) uint64) *metric {
	return &metric{name: name, help: help, kind: kind, values: func(m *measured) []series { return one(f(m.usage)) }}
}

var cpuMetrics = []*metric{
	ofUsage("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", counter, func(u *Usage) uint64 { return seconds(u.CPU.User) }),
	ofUsage("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", counter, func(u *Usage) uint64 { return seconds(u.CPU.System) }),
	{
		name: "container_cpu_usage_seconds_total", help: "Cumulative cpu time consumed in seconds.", kind: counter, extra: []string{"cpu"},
		values: func(m *measured) []series {
			return []series{{value: seconds(m.usage.CPU.Total), labels: []string{"total"}}}
		},
	},
	ofUsage("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", counter, func(u *Usage) uint64 { return u.CPU.Periods }),
	ofUsage("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", counter, func(u *Usage) uint64 { return u.CPU.ThrottledPeriods }),
	ofUsage("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", counter, func(u *Usage) uint64 { return seconds(u.CPU.ThrottledTime) }),
}

var memoryMetrics = []*metric{
	ofUsage("container_memory_cache", "Number of bytes of page cache memory.", gauge, func(u *Usage) uint64 { return u.Memory.Cache }),
	ofUsage("container_memory_rss", "Size of RSS in bytes.", gauge, func(u *Usage) uint64 { return u.Memory.RSS }),
	ofUsage("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", gauge, func(u *Usage) uint64 { return u.Memory.Kernel }),
	ofUsage("container_memory_mapped_file", "Size of memory mapped files in bytes.", gauge, func(u *Usage) uint64 { return u.Memory.MappedFile }),
	ofUsage("container_memory_swap", "Container swap usage in bytes.", gauge, func(u *Usage) uint64 { return u.Memory.Swap }),
	ofUsage("container_memory_failcnt", "Number of memory usage hits limits.", counter, func(u *Usage) uint64 { return u.Memory.Failures }),
	ofUsage("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", gauge, func(u *Usage) uint64 { return u.Memory.Usage }),
	ofUsage("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", gauge, func(u *Usage) uint64 { return u.Memory.MaxUsage }),
	ofUsage("container_memory_working_set_bytes", "Current working set in bytes.", gauge, func(u *Usage) uint64 { return u.Memory.WorkingSet }),
	{
		name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.", kind: counter, extra: []string{"failure_type", "scope"},
		values: func(m *measured) []series {
			faults, major := m.usage.Memory.PageFaults, m.usage.Memory.MajorPageFaults
			return []series{
				{value: faults, labels: []string{"pgfault", "container"}}, {value: major, labels: []string{"pgmajfault", "container"}},
				{value: faults, labels: []string{"pgfault", "hierarchy"}}, {value: major, labels: []string{"pgmajfault", "hierarchy"}},
			}
		},
	},
	ofUsage("container_oom_events_total", "Count of out of memory events observed for the container.", counter, func(u *Usage) uint64 { return u.OOMKills }),
	ofHugetlb("container_hugetlb_usage_bytes", "Current hugepage usage.", func(h Hugetlb) uint64 { return h.Usage }),
	ofHugetlb("container_hugetlb_max_usage_bytes", "Maximum hugepage usages recorded.", func(h Hugetlb) uint64 { return h.MaxUsage }),
}

func ofHugetlb(name, help string, f func(Hugetlb) uint64) *metric {
	return &metric{name: name, help: help, kind: gauge, extra: []string{"pagesize"}, values: func(m *measured) []series {
		var out []series
		for _, h := range m.usage.Hugetlb {
			out = append(out, series{value: f(h), labels: []string{h.PageSize}})
		}
		return out
	}}
}

var pressureMetrics = []*metric{
	ofPressure("cpu", "waiting", "Total time duration tasks in the container have waited due to CPU congestion.", func(u *Usage) *Pressure { return u.CPUPressure }),
	ofPressure("cpu", "stalled", "Total time duration no tasks in the container could make progress due to CPU congestion.", func(u *Usage) *Pressure { return u.CPUPressure }),
	ofPressure("memory", "waiting", "Total time duration tasks in the container have waited due to memory congestion.", func(u *Usage) *Pressure { return u.MemoryPressure }),
	ofPressure("memory", "stalled", "Total time duration no tasks in the container could make progress due to memory congestion.", func(u *Usage) *Pressure { return u.MemoryPressure }),
	ofPressure("io", "waiting", "Total time duration tasks in the container have waited due to IO congestion.", func(u *Usage) *Pressure { return u.IOPressure }),
	ofPressure("io", "stalled", "Total time duration no tasks in the container could make progress due to IO congestion.", func(u *Usage) *Pressure { return u.IOPressure }),
}

func ofPressure(resource, what, help string, f func(u *Usage) *Pressure) *metric {
	return &metric{name: "container_pressure_" + resource + "_" + what + "_seconds_total", help: help, kind: counter, values: func(m *measured) []series {
		p := f(m.usage)
		switch {
		case p == nil:
			return nil
		case what == "waiting":
			return one(seconds(p.Some.Total))
		}
		return one(seconds(p.Full.Total))
	}}
}

var diskMetrics = []*metric{
	ofFilesystem("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", func(f *filesystem) uint64 { return f.used }),
	ofFilesystem("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", func(f *filesystem) uint64 { return f.size }),
	ofFilesystem("container_fs_inodes_total", "Number of inodes.", func(f *filesystem) uint64 { return f.inodes }),
	ofFilesystem("container_fs_inodes_free", "Number of available inodes.", func(f *filesystem) uint64 { return f.inodesFree }),
	ofDevice("container_fs_reads_bytes_total", "Cumulative count of bytes read.", func(d *DeviceIO) uint64 { return d.ReadBytes }),
	ofDevice("container_fs_reads_total", "Cumulative count of reads completed.", func(d *DeviceIO) uint64 { return d.Reads }),
	ofDevice("container_fs_writes_bytes_total", "Cumulative count of bytes written.", func(d *DeviceIO) uint64 { return d.WriteBytes }),
	ofDevice("container_fs_writes_total", "Cumulative count of writes completed.", func(d *DeviceIO) uint64 { return d.Writes }),
	{
		name: "container_blkio_device_usage_total", help: "Blkio device bytes usage.", kind: counter, extra: []string{"device", "major", "minor", "operation"},
		values: func(m *measured) []series {
			var out []series
			for _, d := range m.usage.Devices {
				at := []string{d.name, itoa(d.Major), itoa(d.Minor)}
				out = append(out,
					series{value: d.ReadBytes, labels: append(at[:3:3], "Read")},
					series{value: d.WriteBytes, labels: append(at[:3:3], "Write")})
			}
			return out
		},
	},
}

func ofFilesystem(name, help string, f func(*filesystem) uint64) *metric {
	return &metric{name: name, help: help, kind: gauge, extra: []string{"device"}, values: func(m *measured) []series {
		if m.fs == nil {
			return nil
		}
		return []series{{value: f(m.fs), labels: []string{m.fs.device}, at: m.fs.at}}
	}}
}

func ofDevice(name, help string, f func(*DeviceIO) uint64) *metric {
	return &metric{name: name, help: help, kind: counter, extra: []string{"device"}, values: func(m *measured) []series {
		var out []series
		for i := range m.usage.Devices {
			out = append(out, series{value: f(&m.usage.Devices[i]), labels: []string{m.usage.Devices[i].name}})
		}
		return out
	}}
}

var networkMetrics = []*metric{
	ofInterface("receive_bytes", "Cumulative count of bytes received.", func(i iface) uint64 { return i.rxBytes }),
	ofInterface("receive_packets", "Cumulative count of packets received.", func(i iface) uint64 { return i.rxPackets }),
	ofInterface("receive_packets_dropped", "Cumulative count of packets dropped while receiving.", func(i iface) uint64 { return i.rxDropped }),
	ofInterface("receive_errors", "Cumulative count of errors encountered while receiving.", func(i iface) uint64 { return i.rxErrors }),
	ofInterface("transmit_bytes", "Cumulative count of bytes transmitted.", func(i iface) uint64 { return i.txBytes }),
	ofInterface("transmit_packets", "Cumulative count of packets transmitted.", func(i iface) uint64 { return i.txPackets }),
	ofInterface("transmit_packets_dropped", "Cumulative count of packets dropped while transmitting.", func(i iface) uint64 { return i.txDropped }),
	ofInterface("transmit_errors", "Cumulative count of errors encountered while transmitting.", func(i iface) uint64 { return i.txErrors }),
}

func ofInterface(name, help string, f func(iface) uint64) *metric {
	return &metric{name: "container_network_" + name + "_total", help: help, kind: counter, extra: []string{"interface"}, values: func(m *measured) []series {
		var out []series
		for _, i := range m.net {
			out = append(out, series{value: f(i), labels: []string{i.name}})
		}
		return out
	}}
}

var processMetrics = []*metric{
	ofProcesses("container_processes", "Number of processes running inside the container.", func(p *processes) uint64 { return p.count }),
	ofProcesses("container_file_descriptors", "Number of open file descriptors for the container.", func(p *processes) uint64 { return p.files }),
	ofProcesses("container_sockets", "Number of open sockets for the container.", func(p *processes) uint64 { return p.sockets }),
	ofUsage("container_threads", "Number of threads running inside the container.", gauge, func(u *Usage) uint64 { return u.Pids.Current }),
	ofUsage("container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero.", gauge, func(u *Usage) uint64 { return orZero(u.Pids.Limit) }),
	{
		name: "container_ulimits_soft", help: "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice.", kind: gauge, extra: []string{"ulimit"},
		values: func(m *measured) []series {
			if m.procs == nil || m.procs.softFiles == 0 {
				return nil
			}
			return []series{{value: m.procs.softFiles, labels: []string{"max_open_files"}}}
		},
	},
	{
		name: "container_last_seen", help: "Last time a container was seen by the exporter.", kind: gauge,
		values: func(m *measured) []series { return one(unixSeconds(m.at)) },
	},
}

func ofProcesses(name, help string, f func(*processes) uint64) *metric {
	return &metric{name: name, help: help, kind: gauge, values: func(m *measured) []series {
		if m.procs == nil {
			return nil
		}
		return one(f(m.procs))
	}}
}

var specMetrics = []*metric{
	ofSpec("container_spec_cpu_period", "CPU period of the container.", func(m *measured) []series {
		return one(orDefault(m.spec.GetCpuPeriod(), 100000))
	}),
	ofSpec("container_spec_cpu_quota", "CPU quota of the container.", func(m *measured) []series {
		if q := m.spec.GetCpuQuota(); q > 0 {
			return one(uint64(q))
		}
		return nil // none, as cAdvisor shows it
	}),
	ofSpec("container_spec_cpu_shares", "CPU share of the container.", func(m *measured) []series {
		return one(orDefault(m.spec.GetCpuShares(), 1024))
	}),
	ofSpec("container_spec_memory_limit_bytes", "Memory limit for the container.", func(m *measured) []series {
		return one(orZero(m.usage.Memory.Limit))
	}),
	ofSpec("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", func(m *measured) []series {
		low, _ := strconv.ParseUint(m.spec.GetUnified()["memory.low"], 10, 64) // the only way the CRI has to ask for one
		return one(low)
	}),
	ofSpec("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", func(m *measured) []series {
		mem := &m.usage.Memory
		if mem.Limit == math.MaxUint64 || mem.SwapLimit == math.MaxUint64 {
			return one(0)
		}
		return one(mem.Limit + mem.SwapLimit) // memory and swap, as the CRI counts it
	}),
	{
		name: "container_start_time_seconds", help: "Start time of the container since unix epoch in seconds.", kind: gauge,
		values: func(m *measured) []series { return one(unixSeconds(m.started)) },
	},
}

// ofSpec is a row that pods do not have.
func ofSpec(name, help string, f func(m *measured) []series) *metric {
	return &metric{name: name, help: help, kind: gauge, values: func(m *measured) []series {
		if m.spec == nil {
			return nil
		}
		return f(m)
	}}
}

func orDefault(v int64, def uint64) uint64 {
	if v <= 0 {
		return def
	}
	return uint64(v)
}

func unixSeconds(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }
