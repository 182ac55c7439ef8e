package stream

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

// tokenBytes is the length of the secret in a URL: who guesses it may run commands as root.
const tokenBytes = 32

// tokens keeps requests until their URL is used, once, or its time is over. Requests are found by a hash of
// the token, so that the time a look-up takes says nothing about the tokens there are.
type tokens struct {
	ttl time.Duration
	max int
	now func() time.Time // monotonic

	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*list.Element
	byAge  *list.List // of *pending, oldest first
}

type pending struct {
	hash    [sha256.Size]byte
	request any
	expires time.Time
}

func newTokens(ttl time.Duration, most int) *tokens {
	return &tokens{ttl: ttl, max: most, now: time.Now, byHash: map[[sha256.Size]byte]*list.Element{}, byAge: list.New()}
}

// add keeps a request and returns the token for it. When too many wait to be used, it is errs.Exhausted.
func (t *tokens) add(request any) (string, error) {
	secret := make([]byte, tokenBytes)
	_, _ = rand.Read(secret) // never fails: crypto/rand ends the program instead
	token := base64.RawURLEncoding.EncodeToString(secret)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if t.byAge.Len() >= t.max {
		return "", errs.New(errs.Exhausted, "streaming request: %d others wait for their client. Use the URLs that were handed out, or wait %v.", t.max, t.ttl)
	}
	p := &pending{hash: sha256.Sum256([]byte(token)), request: request, expires: t.now().Add(t.ttl)}
	t.byHash[p.hash] = t.byAge.PushBack(p)
	return token, nil
}

// peek returns the request of a token without using the token up.
func (t *tokens) peek(token string) (any, bool) { return t.find(token, false) }

// take returns the request of a token, at most once.
func (t *tokens) take(token string) (any, bool) { return t.find(token, true) }

func (t *tokens) find(token string, use bool) (any, bool) {
	hash := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	e, ok := t.byHash[hash]
	if !ok {
		return nil, false
	}
	p := e.Value.(*pending) //nolint:forcetypeassert // nothing else is put in
	if use {
		t.remove(e)
	}
	return p.request, true
}

// expire drops what is too old. The caller holds mu.
func (t *tokens) expire() {
	now := t.now()
	for e := t.byAge.Front(); e != nil; e = t.byAge.Front() {
		if p := e.Value.(*pending); now.Before(p.expires) { //nolint:forcetypeassert // nothing else is put in
			return
		}
		t.remove(e)
	}
}

func (t *tokens) remove(e *list.Element) {
	p := t.byAge.Remove(e).(*pending) //nolint:forcetypeassert // nothing else is put in
	delete(t.byHash, p.hash)
}
