package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// eventQueue is how many events may wait for a client that does not read. A node's worth of pods starting
// at once fits.
const eventQueue = 4096

// GetContainerEvents sends every change of a container or pod until the client goes. It never ends by
// itself, but a client that lets eventQueue events pile up is dropped with ResourceExhausted.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, stream cri.RuntimeService_GetContainerEventsServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	events := s.cfg.Sandboxes.Subscribe(ctx)
	out, failed := s.sender(ctx, stream.Send)
	return s.pump(ctx, events, out, failed)
}

// pump moves events to the sender, keeping a bounded queue between them.
func (s *Server) pump(ctx context.Context, events <-chan sandbox.Event, out chan<- *cri.ContainerEventResponse, failed <-chan error) error {
	var queue []*cri.ContainerEventResponse
	for {
		to, head := next(out, queue)
		select {
		case e, ok := <-events:
			if !ok && ctx.Err() != nil {
				return ctx.Err()
			}
			if !ok || len(queue) == eventQueue {
				return errs.New(errs.Exhausted, "container events: the client did not read fast enough and was dropped. List the containers, then subscribe again.")
			}
			queue = append(queue, s.event(e))
		case to <- head:
			queue = queue[1:]
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return errs.New(errs.Unavailable, "container events: the server is stopping. Subscribe again when it is back.")
		}
	}
}

// next is where the head of the queue goes: nowhere, as a nil channel is never ready, while there is none.
func next[T any](out chan<- T, queue []T) (to chan<- T, head T) {
	if len(queue) > 0 {
		to, head = out, queue[0]
	}
	return to, head
}

// sender sends what arrives on the first channel from a goroutine of its own, since a Send to a client that
// does not read blocks. It ends when ctx does; a Send in flight is unblocked by the end of the call.
func (s *Server) sender(ctx context.Context, send func(*cri.ContainerEventResponse) error) (chan<- *cri.ContainerEventResponse, <-chan error) {
	out, failed := make(chan *cri.ContainerEventResponse), make(chan error, 1)
	s.senders.Go(func() {
		for {
			select {
			case m := <-out:
				if err := send(m); err != nil {
					failed <- err
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return out, failed
}

var eventTypes = map[sandbox.EventType]cri.ContainerEventType{
	sandbox.EventCreated: cri.ContainerEventType_CONTAINER_CREATED_EVENT,
	sandbox.EventStarted: cri.ContainerEventType_CONTAINER_STARTED_EVENT,
	sandbox.EventStopped: cri.ContainerEventType_CONTAINER_STOPPED_EVENT,
	sandbox.EventDeleted: cri.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// event converts a change. An event of the pod itself carries the pod's id, as a pod's sandbox is a
// container to the kubelet's event loop.
func (s *Server) event(e sandbox.Event) *cri.ContainerEventResponse {
	resp := &cri.ContainerEventResponse{ContainerEventType: eventTypes[e.Type], CreatedAt: nanos(e.At)}
	if e.Pod != nil {
		resp.ContainerId = e.Pod.ID
		resp.PodSandboxStatus = podStatus(e.Pod)
		for _, c := range s.containersOf(e.Pod.ID) {
			if e.Container == nil || c.ID != e.Container.ID {
				resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(c))
			}
		}
	}
	if e.Container != nil {
		resp.ContainerId = e.Container.ID
		if e.Type != sandbox.EventDeleted {
			resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(e.Container))
		}
	}
	return resp
}
