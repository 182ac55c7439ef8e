package sandbox

import (
	"context"
	"sync"
)

// eventBacklog bounds what a reader that has stopped reading costs; beyond it the oldest events are lost, which a
// kubelet mends by its next relist.
const eventBacklog = 4096

// broker hands every event to every subscriber, each at its own pace.
type broker struct {
	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

type subscriber struct {
	queue []Event
	wake  chan struct{}
}

// publish never blocks.
func (b *broker) publish(ev Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		if len(s.queue) == eventBacklog {
			s.queue = s.queue[1:]
		}
		s.queue = append(s.queue, ev)
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (b *broker) take(s *subscriber) []Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

// Subscribe yields every event that is committed after it returns, in order. The channel is closed when ctx or the
// manager ends. A reader that falls 4096 events behind loses the oldest.
func (m *Manager) Subscribe(ctx context.Context) <-chan Event {
	s := &subscriber{wake: make(chan struct{}, 1)}
	b := &m.events
	b.mu.Lock()
	if b.subs == nil {
		b.subs = map[*subscriber]struct{}{}
	}
	b.subs[s] = struct{}{}
	b.mu.Unlock()
	out := make(chan Event)
	started := m.goDo(func() {
		defer close(out)
		defer b.leave(s)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(m.ctx, cancel)()
		b.pump(ctx, s, out)
	})
	if !started {
		b.leave(s)
		close(out)
	}
	return out
}

func (b *broker) leave(s *subscriber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.subs, s)
}

func (b *broker) pump(ctx context.Context, s *subscriber, out chan<- Event) {
	for {
		for _, ev := range b.take(s) {
			select {
			case out <- ev:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}
