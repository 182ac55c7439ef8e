// Package nft keeps the packet rules of one server: constant rules in a table of its own, and every pod as
// elements of sets and maps.
//
// The rules do what the nftables backends of the reference portmap and bridge plugins do with rules per
// pod. An element carries its owner as its comment, so that what belongs to whom survives the process;
// while the process lives it knows all elements by heart, and puts them back when somebody flushes the
// ruleset.
package nft

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Element is one entry of a set or map of the table.
type Element struct {
	set      string
	key, val string
	text     string // for people: "tcp 0.0.0.0:80"
}

// String says what the element stands for.
func (e Element) String() string { return e.text }

type ident struct{ set, key string }

type entry struct {
	Element
	owner string
}

// Table is the rules of one server in the network namespace it was made in. All methods may be called
// concurrently; they talk to the kernel and block no longer than it does.
type Table struct {
	name string

	mu      sync.Mutex
	conn    *nftables.Conn
	inet    *nftables.Table
	bridge  *nftables.Table // made when the first element of a bridge set is added
	loaded  bool            // entries are what the kernel has
	based   bool            // the constant rules are this program's
	entries map[ident]entry
	owners  map[string]map[ident]struct{}
	dynamic map[string]bool // the sets made for one subnet each, which have a rule each
}

// New returns the table of that name ("cri_<hash>") in the calling thread's network namespace. Nothing is
// made in the kernel before the first element is.
func New(name string) *Table {
	t := &Table{name: name}
	t.forget()
	return t
}

func (t *Table) forget() {
	t.inet = &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
	t.bridge = &nftables.Table{Name: t.name, Family: nftables.TableFamilyBridge}
	t.entries, t.owners, t.dynamic = map[ident]entry{}, map[string]map[ident]struct{}{}, map[string]bool{}
	t.loaded, t.based = false, false
}

// Close closes the table's socket. The rules stay.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.disconnect()
}

func (t *Table) disconnect() error {
	if t.conn == nil {
		return nil
	}
	err := t.conn.CloseLasting()
	t.conn = nil
	return err
}

// Add gives the elements to the owner, in one transaction. A host port that another owner holds is
// errs.Conflict and nothing is added; any other element changes hands, since an address belongs to the
// one who was given it last. Adding what is there already is no error.
func (t *Table) Add(owner string, elems ...Element) error {
	if len(elems) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.base(); err != nil {
		return err
	}
	for _, e := range elems {
		if old, ok := t.entries[ident{e.set, e.key}]; ok && exclusive(e.set) && old.owner != owner {
			return errs.New(errs.Conflict, "map host port (%s): pod %s has it. Stop that pod, or choose another port", e.text, old.owner)
		}
	}
	return t.change(func() error { return t.queueAdd(owner, elems) }, func() {
		for _, e := range elems {
			t.drop(ident{e.set, e.key})
			t.put(entry{e, owner})
		}
	})
}

// Remove takes from the owner every element that match accepts by kind, in one transaction. An owner that
// has none is no error.
func (t *Table) Remove(owner string, kinds ...Kind) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return err
	}
	var gone []Element
	for id := range t.owners[owner] {
		if e := t.entries[id]; kindIn(e.set, kinds) {
			gone = append(gone, e.Element)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return t.change(func() error { return t.queueDel(gone) }, func() {
		for _, e := range gone {
			t.drop(ident{e.set, e.key})
		}
	})
}

// Missing returns the elements of elems that the kernel does not have for the owner. It asks the kernel,
// not memory.
func (t *Table) Missing(owner string, elems ...Element) ([]Element, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.connect(); err != nil {
		return nil, err
	}
	found := map[ident]entry{}
	if _, err := t.dump(found); err != nil {
		return nil, err
	}
	var missing []Element
	for _, e := range elems {
		if have, ok := found[ident{e.set, e.key}]; !ok || have.owner != owner || have.val != e.val {
			missing = append(missing, e)
		}
	}
	return missing, nil
}

// Owners returns what each owner has, in a stable order.
func (t *Table) Owners() (map[string][]Element, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return nil, err
	}
	all := map[string][]Element{}
	for _, e := range t.entries {
		all[e.owner] = append(all[e.owner], e.Element)
	}
	for _, es := range all {
		sort.Slice(es, func(i, j int) bool { return es[i].set+es[i].key < es[j].set+es[j].key })
	}
	return all, nil
}

// Restore puts the table back if somebody removed it, for example with "nft flush ruleset". It costs one
// question to the kernel when nobody did.
func (t *Table) Restore() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.loaded || len(t.entries) == 0 {
		return nil
	}
	if err := t.connect(); err != nil {
		return err
	}
	if there, err := t.exists(t.inet); err != nil || there {
		return err
	}
	return t.reload()
}

// Destroy removes the table from the kernel. A table that is not there is no error.
func (t *Table) Destroy() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.connect(); err != nil {
		return err
	}
	for _, tb := range []*nftables.Table{t.inet, t.bridge} {
		t.conn.AddTable(tb) // so that the deletion always finds one
		t.conn.DelTable(tb)
	}
	if err := t.flush(); err != nil {
		return err
	}
	t.forget()
	return nil
}

// change queues messages, sends them as one transaction and then updates the memory. A failure is tried
// once more after the kernel's state was read again: the table may have been flushed by somebody.
func (t *Table) change(queue func() error, remember func()) error {
	if err := queue(); err != nil {
		return err
	}
	err := t.flush()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		if err = t.reload(); err != nil {
			return err
		}
		if err = queue(); err != nil {
			return err
		}
		err = t.flush()
	}
	if err == nil {
		remember()
	}
	return err
}

func (t *Table) connect() error {
	if t.conn != nil {
		return nil
	}
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open a netfilter socket: %w", err)
	}
	t.conn = c
	return nil
}

// flush sends what is queued. After a failure the socket may hold answers nobody waits for, so it goes.
func (t *Table) flush() error {
	err := t.conn.Flush()
	if err == nil {
		return nil
	}
	_ = t.disconnect()
	if cerr := t.connect(); cerr != nil {
		return cerr
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("change nftables table %s: %w. The server needs CAP_NET_ADMIN", t.name, err)
	}
	return fmt.Errorf("change nftables table %s: %w", t.name, err)
}

func (t *Table) put(e entry) {
	id := ident{e.set, e.key}
	t.entries[id] = e
	if t.owners[e.owner] == nil {
		t.owners[e.owner] = map[ident]struct{}{}
	}
	t.owners[e.owner][id] = struct{}{}
	if isSubnetSet(e.set) {
		t.dynamic[e.set] = true
	}
}

func (t *Table) drop(id ident) {
	old, ok := t.entries[id]
	if !ok {
		return
	}
	delete(t.entries, id)
	if delete(t.owners[old.owner], id); len(t.owners[old.owner]) == 0 {
		delete(t.owners, old.owner)
	}
}

// RemoveAll takes everything from the owner.
func (t *Table) RemoveAll(owner string) error { return t.Remove(owner, HostPorts, Masquerade, Spoof) }
