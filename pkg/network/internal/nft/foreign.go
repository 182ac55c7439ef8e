package nft

import (
	"fmt"

	"github.com/google/nftables"
)

// ForeignDrop says which other table drops forwarded packets by default, or "". Its own rules may let pods
// through all the same, so this is a warning and no error.
func ForeignDrop() (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	chains, err := c.ListChains()
	if err != nil {
		return "", fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		f := ch.Table.Family
		if f != nftables.TableFamilyINet && f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyIPv6 {
			continue
		}
		if ch.Type == nftables.ChainTypeFilter && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward &&
			ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			return fmt.Sprintf("table %q, chain %q drops forwarded packets by default: pods may reach no other host. Let that firewall accept the pods' bridge", ch.Table.Name, ch.Name), nil
		}
	}
	return "", nil
}
