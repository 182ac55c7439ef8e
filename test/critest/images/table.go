package main

import "os"

// image is one look-alike: the names it is served under and what is in it.
type image struct {
	names   []string
	layers  [][]file
	user    string
	env     []string
	entry   []string
	cmd     []string
	stopSig string
	docker  bool // Docker schema 2 media types instead of OCI's
	flat    bool // a bare manifest instead of an index
}

// allImages is the list of what the specs ask for; a comment says what a spec demands of an image.
func allImages(busybox, helper string) ([]*image, error) {
	base, err := baseLayer(busybox, helper)
	if err != nil {
		return nil, err
	}
	prog, err := os.ReadFile(helper)
	if err != nil {
		return nil, err
	}
	const (
		e2e   = "registry.k8s.io/e2e-test-images/"
		tools = "gcr.io/k8s-staging-cri-tools/"
	)
	sh := []string{"sh"}
	app := func(path string, mode int64) []file { return []file{{name: path, mode: mode, data: prog}} }
	all := []*image{
		{names: []string{e2e + "busybox:1.29-2"}, layers: [][]file{base}, cmd: sh},
		// Answers 200 on :80; /var/run/nginx.pid holds its pid as its own namespace sees it.
		{names: []string{e2e + "nginx:1.14-2"}, layers: [][]file{base, app("usr/sbin/nginx", 0o755)}, cmd: []string{"nginx", "-g", "daemon off;"}, stopSig: "SIGTERM"},
		{names: []string{e2e + "httpd:2.4.39-4"}, layers: [][]file{base, app("usr/local/bin/httpd", 0o755)}, cmd: []string{"httpd", "-D", "FOREGROUND"}, stopSig: "SIGWINCH"},
		{names: []string{e2e + "nonewprivs:1.3"}, layers: [][]file{base, app("nnp", 0o4755)}, entry: []string{"/nnp"}},
		{names: []string{tools + "hostnet-nginx-amd64:latest"}, layers: [][]file{base, app("usr/sbin/nginx", 0o755)}, env: []string{"LISTEN_PORT=12003"}, cmd: []string{"nginx", "-g", "daemon off;"}, docker: true, flat: true},
		// The same manifest from two registries is one image with two tags.
		{names: []string{"registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"}, layers: [][]file{app("pause", 0o755)}, entry: []string{"/pause"}, user: "65535:65535", env: []string{"MARK=3.9"}, docker: true},
		{names: []string{"registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause:3.10.2", "registry.k8s.io/pause:latest"}, layers: [][]file{app("pause", 0o755)}, entry: []string{"/pause"}, user: "65535:65535", env: []string{"MARK=3.10"}, docker: true},
		{names: []string{tools + "test-image-tags:1", tools + "test-image-tags:2", tools + "test-image-tags:3"}, layers: [][]file{base, marker("tags")}, cmd: sh, docker: true},
		// `id -G` of uid 1000 must have the group that the image's own /etc/group gives it.
		{names: []string{tools + "test-image-predefined-group:latest"}, user: "1000", cmd: sh, docker: true, layers: [][]file{base, {
			{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n")},
			{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\nnogroup:x:65534:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
			{name: "home/default-user", dir: true, mode: 0o755, uid: 1000, gid: 1000},
		}}},
	}
	for suffix, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"} {
		all = append(all, &image{names: []string{tools + "test-image-user-" + suffix + ":latest"}, layers: [][]file{base}, user: user, cmd: sh, docker: true})
	}
	for _, n := range []string{"test-image-1:latest", "test-image-2:latest", "test-image-3:latest", "test-image-latest:latest", "test-image-tag:test", "test-image-tag:all", "test-image-digest:latest"} {
		all = append(all, &image{names: []string{tools + n}, layers: [][]file{base, marker(n)}, cmd: sh, docker: true})
	}
	return all, nil
}

func marker(text string) []file {
	return []file{{name: "marker", mode: 0o644, data: []byte(text + "\n")}}
}
