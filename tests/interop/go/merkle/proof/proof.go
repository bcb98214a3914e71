// Package proof is the released one, and a refusal of what came after it.
package proof

import (
	"errors"

	released "released.invalid/merkle/proof"

	"github.com/transparency-dev/merkle"
)

type (
	Nodes             = released.Nodes
	RootMismatchError = released.RootMismatchError
)

var (
	Consistency            = released.Consistency
	Inclusion              = released.Inclusion
	RootFromInclusionProof = released.RootFromInclusionProof
	VerifyConsistency      = released.VerifyConsistency
	VerifyInclusion        = released.VerifyInclusion
)

// VerifySubtreeConsistency refuses: a witness that is built with this signs no subtree.
func VerifySubtreeConsistency(
	_ merkle.LogHasher, _, _, _ uint64, _ [][]byte, _, _ []byte,
) error {
	return errors.New("subtrees are not verified here")
}
