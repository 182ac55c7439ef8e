package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
)

// flag is one option of a command. The standard flag package has no aliases, and stops at the first
// argument where runc does not.
type flag struct {
	names  []string // the long one first
	arg    string   // what its value is called; "" for a switch
	usage  string
	set    func(value string) error
	hidden bool
}

func split(names string) []string { return strings.Fields(names) }

func text(p *string, names, arg, usage string) flag {
	return flag{names: split(names), arg: arg, usage: usage, set: func(v string) error { *p = v; return nil }}
}

func list(p *[]string, names, arg, usage string) flag {
	return flag{names: split(names), arg: arg, usage: usage, set: func(v string) error { *p = append(*p, v); return nil }}
}

func boolean(p *bool, names, usage string) flag {
	return flag{names: split(names), usage: usage, set: func(v string) (err error) { *p, err = strconv.ParseBool(v); return err }}
}

func number(p *int, names, usage string) flag {
	return flag{names: split(names), arg: "N", usage: usage, set: func(v string) (err error) { *p, err = strconv.Atoi(v); return err }}
}

func hidden(f flag) flag {
	f.hidden = true
	return f
}

// parse reads flags and returns the arguments among them. Flags end at "--", and after stop arguments
// where stop is not 0: what follows belongs to another program.
func parse(flags []flag, args []string, stop int) ([]string, error) {
	var rest []string
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		if word == "--" {
			return append(rest, args...), nil
		}
		if len(word) < 2 || word[0] != '-' {
			if rest = append(rest, word); stop > 0 && len(rest) >= stop {
				return append(rest, args...), nil
			}
			continue
		}
		name, value, given := strings.Cut(strings.TrimLeft(word, "-"), "=")
		f := find(flags, name)
		if f == nil && !given && !strings.HasPrefix(word, "--") { // short switches in one word: -dt
			if bundle(flags, name) {
				for _, c := range name {
					if err := find(flags, string(c)).set("true"); err != nil {
						return nil, err
					}
				}
				continue
			}
		}
		switch {
		case f == nil:
			return nil, fmt.Errorf("flag provided but not defined: -%s", name)
		case f.arg == "" && !given:
			value = "true"
		case !given && len(args) == 0:
			return nil, fmt.Errorf("flag needs an argument: --%s", name)
		case !given:
			value, args = args[0], args[1:]
		}
		if err := f.set(value); err != nil {
			return nil, fmt.Errorf("invalid value %q for flag -%s: %w", value, name, err)
		}
	}
	return rest, nil
}

func find(flags []flag, name string) *flag {
	for i := range flags {
		for _, n := range flags[i].names {
			if n == name {
				return &flags[i]
			}
		}
	}
	return nil
}

// bundle reports that every letter is a switch.
func bundle(flags []flag, letters string) bool {
	for _, c := range letters {
		if f := find(flags, string(c)); f == nil || f.arg != "" {
			return false
		}
	}
	return len(letters) > 1
}

func (a *app) help(globals []flag) {
	fmt.Printf("NAME:\n   %s - Open Container Initiative runtime\n\nUSAGE:\n   %s [global options] command [options] [arguments...]\n\nCOMMANDS:\n", a.name, a.name)
	w := tabwriter.NewWriter(os.Stdout, 0, 1, 3, ' ', 0)
	for _, c := range commands() {
		fmt.Fprintf(w, "   %s\t%s\n", c.name, c.usage)
	}
	w.Flush()
	fmt.Print("\nGLOBAL OPTIONS:\n")
	usage(globals)
}

func (a *app) commandHelp(c *command, flags []flag) {
	fmt.Printf("NAME:\n   %s %s - %s\n\nUSAGE:\n   %s %s [options] %s\n\nOPTIONS:\n", a.name, c.name, c.usage, a.name, c.name, c.args)
	usage(flags)
}

func usage(flags []flag) {
	w := tabwriter.NewWriter(os.Stdout, 0, 1, 3, ' ', 0)
	for _, f := range flags {
		if f.hidden {
			continue
		}
		names := "--" + f.names[0]
		for _, n := range f.names[1:] {
			names += ", -" + n
		}
		if f.arg != "" {
			names += " " + f.arg
		}
		fmt.Fprintf(w, "   %s\t%s\n", names, f.usage)
	}
	w.Flush()
}
