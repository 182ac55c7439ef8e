package server

import "google.golang.org/protobuf/proto"

// The Stream calls put at most this many items and about this many bytes into a message, far below
// MaxMessage: a client that asks for a stream wants to be spared large messages.
const (
	batchItems = 256
	batchBytes = 1 << 20
)

// batches sends items in order, each once, in messages of at least one item. It sends nothing when there
// are none.
func batches[T proto.Message](items []T, send func([]T) error) error {
	start, size := 0, 0
	for i, item := range items {
		n := proto.Size(item)
		if i > start && (i-start >= batchItems || size+n > batchBytes) {
			if err := send(items[start:i]); err != nil {
				return err
			}
			start, size = i, 0
		}
		size += n
	}
	if start == len(items) {
		return nil
	}
	return send(items[start:])
}

// hasLabels reports whether labels have every pair of the selector.
func hasLabels(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
