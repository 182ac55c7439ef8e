package cli

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) ps() *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use: "ps", Short: "List the running containers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client) error { return a.listContainers(cmd, c, all, quiet) })
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that do not run, too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only the identifiers, in full")
	return cmd
}

func (a *app) listContainers(cmd *cobra.Command, c *client, all, quiet bool) error {
	req := &cri.ListContainersRequest{}
	if !all {
		req.Filter = &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}
	}
	resp, err := c.ListContainers(cmd.Context(), req)
	if err != nil {
		return err
	}
	pods, err := c.ListPodSandbox(cmd.Context(), &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	podName := map[string]string{}
	for _, p := range pods.GetItems() {
		podName[p.GetId()] = p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
	}
	slices.SortFunc(resp.GetContainers(), func(x, y *cri.Container) int { return cmp.Compare(y.GetCreatedAt(), x.GetCreatedAt()) })
	var rows [][]string
	for _, x := range resp.GetContainers() {
		if quiet {
			rows = append(rows, []string{x.GetId()})
			continue
		}
		img := x.GetImage().GetImage()
		if strings.HasPrefix(img, "sha256:") {
			img = short(img)
		}
		rows = append(rows, []string{short(x.GetId()), x.GetMetadata().GetName(), podName[x.GetPodSandboxId()], state(x.GetState().String()), ago(x.GetCreatedAt()), img})
	}
	return a.rows(quiet, []string{"CONTAINER", "NAME", "POD", "STATE", "AGE", "IMAGE"}, rows)
}

func (a *app) pods() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "pods", Short: "List the pod sandboxes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client) error { return a.listPods(cmd, c, quiet) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only the identifiers, in full")
	return cmd
}

func (a *app) listPods(cmd *cobra.Command, c *client, quiet bool) error {
	resp, err := c.ListPodSandbox(cmd.Context(), &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	slices.SortFunc(resp.GetItems(), func(x, y *cri.PodSandbox) int { return cmp.Compare(y.GetCreatedAt(), x.GetCreatedAt()) })
	var rows [][]string
	for _, p := range resp.GetItems() {
		if quiet {
			rows = append(rows, []string{p.GetId()})
			continue
		}
		ip := "-"
		if st, err := c.PodSandboxStatus(cmd.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.GetId()}); err == nil && st.GetStatus().GetNetwork().GetIp() != "" {
			ip = st.GetStatus().GetNetwork().GetIp()
		}
		rows = append(rows, []string{short(p.GetId()), p.GetMetadata().GetNamespace(), p.GetMetadata().GetName(), state(p.GetState().String()), ago(p.GetCreatedAt()), ip})
	}
	return a.rows(quiet, []string{"POD", "NAMESPACE", "NAME", "STATE", "AGE", "IP"}, rows)
}

// rows prints a table, or one column without its name.
func (a *app) rows(quiet bool, header []string, rows [][]string) error {
	if quiet {
		if len(rows) == 0 {
			return nil
		}
		return table(a.out, rows[0], rows[1:])
	}
	return table(a.out, header, rows)
}

// state is a state of the CRI as a person says it: "running", "ready".
func state(s string) string {
	_, s, _ = strings.Cut(s, "_")
	return strings.ToLower(s)
}
