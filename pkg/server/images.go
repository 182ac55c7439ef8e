package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/oci"
)

// ListImages lists the images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, req *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	images, err := s.listImages(req.GetFilter())
	return &cri.ListImagesResponse{Images: images}, err
}

// StreamImages is ListImages in batches.
func (s *Server) StreamImages(req *cri.StreamImagesRequest, stream cri.ImageService_StreamImagesServer) error {
	images, err := s.listImages(req.GetFilter())
	if err != nil {
		return err
	}
	return batches(images, func(b []*cri.Image) error { return stream.Send(&cri.StreamImagesResponse{Images: b}) })
}

func (s *Server) listImages(f *cri.ImageFilter) ([]*cri.Image, error) {
	all := s.cfg.Images.List()
	if err := s.checkHandler(f.GetImage().GetRuntimeHandler()); err != nil {
		return nil, errs.New(errs.Invalid, "filter.image.%w", err)
	}
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.cfg.Images.Get(ref)
		if errs.Is(err, errs.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		all = []*image.Image{img}
	}
	out := make([]*cri.Image, 0, len(all))
	for _, img := range all {
		out = append(out, imageItem(img))
	}
	return out, nil
}

// ImageStatus describes one image. An absent image is an answer without one, not an error.
func (s *Server) ImageStatus(_ context.Context, req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if err := s.checkImageSpec("image", req.GetImage()); err != nil {
		return nil, err
	}
	img, err := s.cfg.Images.Get(req.GetImage().GetImage())
	if errs.Is(err, errs.NotFound) {
		return &cri.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &cri.ImageStatusResponse{Image: imageItem(img)}
	if req.GetVerbose() {
		resp.Info, err = encodeInfo(imageInfo(img))
	}
	return resp, err
}

// PullImage brings an image into the store. It takes as long as it takes: cancelling the call cancels it.
func (s *Server) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if err := s.checkImageSpec("image", req.GetImage()); err != nil {
		return nil, err
	}
	id, err := s.cfg.Images.Pull(ctx, req.GetImage().GetImage(), image.PullOptions{Auth: pullAuth(req.GetAuth())})
	if errs.Is(err, errs.Unavailable) && !strings.HasPrefix(err.Error(), registryUnavailable) {
		return nil, fmt.Errorf("%s: %w", registryUnavailable, err)
	}
	if err != nil {
		return nil, err
	}
	return &cri.PullImageResponse{ImageRef: id}, nil
}

// RemoveImage removes an image with all its tags, by whichever it is named. An absent one is removed.
func (s *Server) RemoveImage(ctx context.Context, req *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	if err := s.checkImageSpec("image", req.GetImage()); err != nil {
		return nil, err
	}
	img, err := s.cfg.Images.Get(req.GetImage().GetImage())
	if err == nil {
		err = s.cfg.Images.Remove(ctx, img.ID)
	}
	if err != nil && !errs.Is(err, errs.NotFound) {
		return nil, err
	}
	return &cri.RemoveImageResponse{}, nil
}

// ImageFsInfo tells how much space images and containers take, and on which filesystems.
func (s *Server) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	images, containers, err := s.cfg.Images.FsUsage(ctx)
	if err != nil {
		return nil, err
	}
	return &cri.ImageFsInfoResponse{
		ImageFilesystems:     []*cri.FilesystemUsage{fsUsage(images)},
		ContainerFilesystems: []*cri.FilesystemUsage{fsUsage(containers)},
	}, nil
}

func fsUsage(u image.Usage) *cri.FilesystemUsage {
	return &cri.FilesystemUsage{
		Timestamp: now(), FsId: &cri.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes: &cri.UInt64Value{Value: u.Bytes}, InodesUsed: &cri.UInt64Value{Value: u.Inodes},
	}
}

func pullAuth(a *cri.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}

func imageItem(img *image.Image) *cri.Image {
	uid, username := oci.ImageUser(img.Config.User)
	username = strings.ToValidUTF8(username, "\uFFFD") // hostile bytes must not break the encoding of a whole list
	return &cri.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size,
		Uid: uid, Username: username, Spec: &cri.ImageSpec{Image: img.ID}, Pinned: img.Pinned,
	}
}

// imageInfo is the verbose part of an image's status.
func imageInfo(img *image.Image) map[string]any {
	info := struct {
		Layers    []string `json:"layers"`
		Created   string   `json:"created,omitempty"`
		ImageSpec any      `json:"imageSpec"`
	}{Layers: img.Layers, ImageSpec: map[string]any{"config": img.Config}}
	if !img.Created.IsZero() {
		info.Created = img.Created.UTC().Format(time.RFC3339Nano)
	}
	return map[string]any{"info": info}
}
