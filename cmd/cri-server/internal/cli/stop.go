package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) stop() *cobra.Command {
	var grace int64
	cmd := &cobra.Command{
		Use: "stop ID...", Short: "Stop containers or pods", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return a.forEach(cmd.Context(), ids, func(ctx context.Context, c *client, id string) error {
				_, err := c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: grace})
				return err
			}, func(ctx context.Context, c *client, id string) error {
				_, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
				return err
			})
		},
	}
	cmd.Flags().Int64VarP(&grace, "time", "t", 10, "seconds a container may take to end by itself")
	return cmd
}

func (a *app) rm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm ID...", Short: "Remove containers or pods", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return a.forEach(cmd.Context(), ids, func(ctx context.Context, c *client, id string) error {
				if err := refuseRunning(ctx, c, id, force); err != nil {
					return err
				}
				_, err := c.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
				return err
			}, func(ctx context.Context, c *client, id string) error {
				st, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
				if err == nil {
					_, err = c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
				}
				if err == nil {
					err = removeLogs(st.GetStatus())
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "running containers, too")
	return cmd
}

func refuseRunning(ctx context.Context, c *client, id string, force bool) error {
	st, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err == nil && !force && st.GetStatus().GetState() == cri.ContainerState_CONTAINER_RUNNING {
		return errors.New("remove container (" + id + "): it is running. Stop it first, or use --force.")
	}
	return err
}

// forEach does one thing to every container or pod that is named, and goes on after failures.
func (a *app) forEach(ctx context.Context, ids []string, container, pod func(context.Context, *client, string) error) error {
	return a.with(ctx, func(c *client) error {
		var all error
		for _, id := range ids {
			full, isPod, err := c.find(ctx, id)
			switch {
			case err != nil:
			case isPod:
				err = pod(ctx, c, full)
			default:
				err = container(ctx, c, full)
			}
			if err != nil {
				all = errors.Join(all, errors.New(explain(err)))
			}
		}
		return all
	})
}

// find tells containers and pods apart.
func (c *client) find(ctx context.Context, id string) (full string, pod bool, err error) {
	ctr, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err == nil {
		return ctr.GetStatus().GetId(), false, nil
	}
	if status.Code(err) != codes.NotFound {
		return "", false, err
	}
	p, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err == nil {
		return p.GetStatus().GetId(), true, nil
	}
	if status.Code(err) != codes.NotFound {
		return "", false, err
	}
	return "", false, errors.New("find container or pod (" + id + "): there is none of that identifier. \"cri-server ps -a\" and \"cri-server pods\" list them.")
}
