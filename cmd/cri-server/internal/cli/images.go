package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) images() *cobra.Command {
	return &cobra.Command{
		Use: "images", Aliases: []string{"image", "img"}, Short: "List the images", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client) error {
				resp, err := c.images.ListImages(cmd.Context(), &cri.ListImagesRequest{})
				if err != nil {
					return err
				}
				var rows [][]string
				for _, img := range resp.GetImages() {
					names := img.GetRepoTags()
					if len(names) == 0 {
						names = img.GetRepoDigests()
					}
					if len(names) == 0 {
						names = []string{"-"}
					}
					for _, n := range names {
						rows = append(rows, []string{n, short(img.GetId()), size(float64(img.GetSize()))})
					}
				}
				return table(a.out, []string{"IMAGE", "ID", "SIZE"}, rows)
			})
		},
	}
}

func (a *app) rmi() *cobra.Command {
	return &cobra.Command{
		Use: "rmi IMAGE...", Short: "Remove images, with all their tags", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.with(cmd.Context(), func(c *client) error {
				var all error
				for _, ref := range refs {
					if err := c.removeImage(cmd.Context(), ref); err != nil {
						all = errors.Join(all, errors.New(explain(err)))
					}
				}
				return all
			})
		},
	}
}

// removeImage removes an image that is there: to the CRI an absent one is as good as removed, and a person has mistyped.
func (c *client) removeImage(ctx context.Context, ref string) error {
	spec := &cri.ImageSpec{Image: ref}
	st, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err == nil && st.GetImage() == nil {
		err = errors.New("remove image (" + ref + "): there is none of that name. \"cri-server images\" lists them.")
	}
	if err == nil {
		_, err = c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
	}
	return err
}
