// Package compact is the released one.
package compact

import released "released.invalid/merkle/compact"

type (
	HashFn       = released.HashFn
	NodeID       = released.NodeID
	Range        = released.Range
	RangeFactory = released.RangeFactory
	VisitFn      = released.VisitFn
)

var (
	Decompose  = released.Decompose
	NewNodeID  = released.NewNodeID
	RangeNodes = released.RangeNodes
	RangeSize  = released.RangeSize
)
