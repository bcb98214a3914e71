module github.com/transparency-dev/merkle

go 1.24.0

require released.invalid/merkle v0.0.2

replace released.invalid/merkle => github.com/transparency-dev/merkle v0.0.2
