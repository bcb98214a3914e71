// Package rfc6962 is the released one.
package rfc6962

import released "released.invalid/merkle/rfc6962"

type Hasher = released.Hasher

var (
	DefaultHasher = released.DefaultHasher
	New           = released.New
)
