package nft

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The 4-byte registers of nf_tables; register 1 is the first four of them.
const (
	reg1   = unix.NFT_REG_1
	reg32  = unix.NFT_REG32_00
	rtnLoc = unix.RTN_LOCAL
)

// load reads the kernel's state, once.
func (t *Table) load() error {
	if err := t.connect(); err != nil || t.loaded {
		return err
	}
	return t.read()
}

// base makes the constant rules, once. A table that an earlier process made gets them anew.
func (t *Table) base() error {
	if err := t.load(); err != nil || t.based {
		return err
	}
	if err := t.queueBase(); err != nil {
		return err
	}
	err := t.flush()
	t.based = err == nil
	return err
}

// read makes the memory what the kernel has.
func (t *Table) read() error {
	found, sets, err := t.dumpStable()
	if err != nil {
		return err
	}
	t.forget()
	for _, s := range sets {
		if isSubnetSet(s) {
			t.dynamic[s] = true
		}
	}
	for _, e := range found {
		t.put(e)
	}
	t.loaded = true
	return nil
}

// reload reads what the kernel has, writes the constant rules again and puts back what memory has and the
// kernel has lost.
func (t *Table) reload() error {
	if err := t.connect(); err != nil {
		return err
	}
	known := t.entries
	if err := t.read(); err != nil {
		return err
	}
	lost, spoof := map[string][]Element{}, false
	for id, e := range known {
		spoof = spoof || kindOf(e.set) == Spoof
		if _, ok := t.entries[id]; !ok {
			lost[e.owner] = append(lost[e.owner], e.Element)
			t.put(e)
		}
	}
	err := t.queueBase()
	if err == nil && spoof {
		err = t.queueBridge()
	}
	for owner, elems := range lost {
		if err == nil {
			err = t.queueElements(owner, elems, true)
		}
	}
	if err == nil {
		err = t.flush()
	}
	t.based = err == nil
	return err
}

// dumpStable dumps until two dumps agree: one that is long may miss elements when anybody changes any
// table meanwhile.
func (t *Table) dumpStable() (map[ident]entry, []string, error) {
	const most = 10
	var last map[ident]entry
	for i := 0; ; i++ {
		found := map[ident]entry{}
		sets, err := t.dump(found)
		if err != nil || i > 0 && maps.Equal(found, last) || i == most {
			return found, sets, err
		}
		last = found
	}
}

// dump reads every element of both tables and the names of the sets of the inet table.
func (t *Table) dump(into map[ident]entry) ([]string, error) {
	var names []string
	for _, tb := range []*nftables.Table{t.inet, t.bridge} {
		there, err := t.exists(tb)
		if err != nil {
			return nil, err
		}
		if !there {
			continue
		}
		sets, err := t.conn.GetSets(tb)
		if err != nil {
			_ = t.disconnect()
			return nil, errors.Join(fmt.Errorf("read nftables table %s: %w", t.name, err), t.connect())
		}
		for _, s := range sets {
			s.Table = tb
			names = append(names, s.Name)
			elems, err := t.conn.GetSetElements(s)
			if err != nil {
				_ = t.disconnect()
				return nil, errors.Join(fmt.Errorf("read nftables set %s %s: %w", t.name, s.Name, err), t.connect())
			}
			for _, e := range elems {
				key, val := string(e.Key), string(e.Val)
				into[ident{s.Name, key}] = entry{Element{s.Name, key, val, describe(s.Name, key, val)}, e.Comment}
			}
		}
	}
	return names, nil
}

func (t *Table) exists(tb *nftables.Table) (bool, error) {
	all, err := t.conn.ListTablesOfFamily(tb.Family)
	if err != nil {
		_ = t.disconnect()
		return false, errors.Join(fmt.Errorf("list nftables tables: %w", err), t.connect())
	}
	for _, have := range all {
		if have.Name == tb.Name {
			return true, nil
		}
	}
	return false, nil
}

// queueBase makes table, sets and chains, and writes the constant rules anew; harmless when all is there.
func (t *Table) queueBase() error {
	c := t.conn
	c.AddTable(t.inet)
	for _, s := range fixedSets(t.inet) {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	chain := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio int) *nftables.Chain {
		ch := &nftables.Chain{Table: t.inet, Name: name}
		if hook != nil {
			ch.Type, ch.Hooknum, ch.Priority = typ, hook, nftables.ChainPriorityRef(nftables.ChainPriority(prio))
		}
		c.AddChain(ch)
		c.FlushChain(ch)
		return ch
	}
	hostports := chain("hostports", "", nil, 0)
	masq := chain(masqChain, "", nil, 0)
	mapped := chain(mappedChain, "", nil, 0)
	guard := chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
	pre := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100)
	out := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100)
	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)
	rule := func(ch *nftables.Chain, exprs ...[]expr.Any) {
		var all []expr.Any
		for _, e := range exprs {
			all = append(all, e...)
		}
		c.AddRule(&nftables.Rule{Table: t.inet, Chain: ch, Exprs: all})
	}
	rule(guard, family(unix.NFPROTO_IPV4), in("127.0.0.0/8", destination), ifnameIn(localnet), verdict(expr.VerdictDrop, ""))
	rule(pre, daddrLocal(), verdict(expr.VerdictJump, hostports.Name))
	rule(out, daddrLocal(), verdict(expr.VerdictJump, hostports.Name))
	rule(hostports, family(unix.NFPROTO_IPV4), dnat(ports4IP, unix.NFPROTO_IPV4, true))
	rule(hostports, family(unix.NFPROTO_IPV4), dnat(ports4, unix.NFPROTO_IPV4, false))
	rule(hostports, family(unix.NFPROTO_IPV6), dnat(ports6IP, unix.NFPROTO_IPV6, true))
	rule(hostports, family(unix.NFPROTO_IPV6), dnat(ports6, unix.NFPROTO_IPV6, false))
	rule(post, family(unix.NFPROTO_IPV4), pair(hairpin4, 12, 4), []expr.Any{&expr.Masq{}})
	rule(post, family(unix.NFPROTO_IPV6), pair(hairpin6, 8, 16), []expr.Any{&expr.Masq{}})
	rule(post, verdict(expr.VerdictJump, mapped.Name))
	rule(post, family(unix.NFPROTO_IPV4), in("224.0.0.0/4", destination), verdict(expr.VerdictReturn, ""))
	rule(post, family(unix.NFPROTO_IPV6), in("ff00::/8", destination), verdict(expr.VerdictReturn, ""))
	rule(post, verdict(expr.VerdictGoto, masq.Name))
	for name := range t.dynamic {
		if err := t.queueSubnet(name); err != nil {
			return err
		}
	}
	return nil
}

// queueSubnet makes the set of addresses of one subnet and the rule that reads it: what they send outside
// of it is masqueraded, or what they are sent from inside through a host port.
func (t *Table) queueSubnet(name string) error {
	set, p, err := newSubnetSet(t.inet, name, 100)
	if err != nil {
		return err
	}
	if err := t.conn.AddSet(set, nil); err != nil {
		return err
	}
	fam := byte(unix.NFPROTO_IPV4)
	if p.Addr().Is6() {
		fam = unix.NFPROTO_IPV6
	}
	exprs, chain := family(fam), masqChain
	if strings.HasPrefix(name, mappedPrefix) {
		chain = mappedChain
		exprs = append(exprs, prefix(p, source, expr.CmpOpEq)...)
		exprs = append(exprs, address(p, destination), &expr.Lookup{SourceRegister: reg1, SetName: name})
		exprs = append(exprs, translated()...)
	} else {
		exprs = append(exprs, address(p, source), &expr.Lookup{SourceRegister: reg1, SetName: name})
		exprs = append(exprs, prefix(p, destination, expr.CmpOpNeq)...)
	}
	exprs = append(exprs, &expr.Masq{})
	t.conn.AddRule(&nftables.Rule{Table: t.inet, Chain: &nftables.Chain{Table: t.inet, Name: chain}, Exprs: exprs})
	return nil
}

// queueBridge makes the table that holds bridge ports to their MAC address.
func (t *Table) queueBridge() error {
	t.conn.AddTable(t.bridge)
	for _, s := range bridgeSets(t.bridge) {
		if err := t.conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	ch := &nftables.Chain{Table: t.bridge, Name: "prerouting", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300)}
	t.conn.AddChain(ch)
	t.conn.FlushChain(ch)
	exprs := ifnameIn(spoofIfs)
	exprs = append(exprs,
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Payload{DestRegister: reg32 + 4, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Lookup{SourceRegister: reg1, SetName: spoofOK, Invert: true})
	exprs = append(exprs, verdict(expr.VerdictDrop, "")...)
	t.conn.AddRule(&nftables.Rule{Table: t.bridge, Chain: ch, Exprs: exprs})
	return nil
}

func (t *Table) queueAdd(owner string, elems []Element) error {
	var bridge bool
	for _, e := range elems {
		if isSubnetSet(e.set) && !t.dynamic[e.set] {
			if err := t.queueSubnet(e.set); err != nil {
				return err
			}
		}
		bridge = bridge || kindOf(e.set) == Spoof
	}
	if bridge {
		if err := t.queueBridge(); err != nil {
			return err
		}
	}
	var taken []Element
	for _, e := range elems {
		if old, ok := t.entries[ident{e.set, e.key}]; ok && (old.owner != owner || old.val != e.val) {
			taken = append(taken, old.Element)
		}
	}
	if err := t.queueElements("", taken, false); err != nil {
		return err
	}
	return t.queueElements(owner, elems, true)
}

func (t *Table) queueDel(elems []Element) error {
	var left []Element
	for _, e := range elems {
		if _, ok := t.entries[ident{e.set, e.key}]; ok { // a retry: the kernel may have lost some
			left = append(left, e)
		}
	}
	return t.queueElements("", left, false)
}

func (t *Table) queueElements(owner string, elems []Element, add bool) error {
	for _, e := range elems {
		tb := t.inet
		if kindOf(e.set) == Spoof {
			tb = t.bridge
		}
		s := &nftables.Set{Table: tb, Name: e.set, IsMap: e.val != ""}
		el := []nftables.SetElement{{Key: []byte(e.key), Val: []byte(e.val), Comment: owner}}
		var err error
		if add {
			err = t.conn.SetAddElements(s, el)
		} else {
			el[0].Val = nil
			err = t.conn.SetDeleteElements(s, el)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type side bool

const (
	source      side = false
	destination side = true
)

func family(f byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{f}}}
}

func in(cidr string, s side) []expr.Any { return prefix(netip.MustParsePrefix(cidr), s, expr.CmpOpEq) }

// address loads the packet's source or destination address, of the family of p.
func address(p netip.Prefix, s side) *expr.Payload {
	off, n := uint32(12), uint32(4)
	if p.Addr().Is6() {
		off, n = 8, 16
	}
	if s == destination {
		off += n
	}
	return &expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n}
}

// prefix compares the source or destination address with a network.
func prefix(p netip.Prefix, s side, op expr.CmpOp) []expr.Any {
	load := address(p, s)
	mask := make([]byte, load.Len)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: load.Len, Mask: mask, Xor: make([]byte, load.Len)},
		&expr.Cmp{Op: op, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	}
}

// translated matches connections whose destination was changed: those through a host port.
func translated() []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func ifnameIn(set string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, &expr.Lookup{SourceRegister: reg1, SetName: set}}
}

func daddrLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(rtnLoc)},
	}
}

func verdict(k expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: k, Chain: chain}}
}

// pair looks the source and destination address up together. They are adjacent in both headers.
func pair(set string, off, n uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n},
		&expr.Payload{DestRegister: reg32 + n/4, Base: expr.PayloadBaseNetworkHeader, Offset: off + n, Len: n},
		&expr.Lookup{SourceRegister: reg1, SetName: set},
	}
}

// dnat looks (address,) protocol and port up and sends the packet to the pod's address and port.
func dnat(set string, fam uint32, byAddr bool) []expr.Any {
	off, n := uint32(16), uint32(4)
	if fam == unix.NFPROTO_IPV6 {
		off, n = 24, 16
	}
	var exprs []expr.Any
	reg := uint32(reg32)
	if byAddr {
		exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n})
		reg += n / 4
	}
	return append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: reg + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32, DestRegister: reg32, IsDestRegSet: true, SetName: set},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: reg32, RegProtoMin: reg32 + n/4, Specified: true},
	)
}
