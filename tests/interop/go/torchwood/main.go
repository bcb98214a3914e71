// Torchwood drives the library of that name for a test: one JSON object on a line asks, one answers.
//
//	{"do": "verify", ...} -> {...} or {"error": "..."}
//
// What may be asked is the table of main. Bytes are base64, as encoding/json has them.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type object map[string]any

func main() {
	asked := map[string]func(json.RawMessage) (object, error){
		"format": formatProof, "proof": verifyProof, "read": readLog, "verify": verify,
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var which struct{ Do string }
		answer, err := object(nil), json.Unmarshal(lines.Bytes(), &which)
		if err == nil {
			if do := asked[which.Do]; do != nil {
				answer, err = do(lines.Bytes())
			} else {
				err = fmt.Errorf("nothing is called %q", which.Do)
			}
		}
		if err != nil {
			answer = object{"error": err.Error()}
		}
		if answers.Encode(answer) != nil {
			return
		}
	}
}

// verify checks a signed checkpoint under a policy, and tells the cosignatures' times.
func verify(raw json.RawMessage) (object, error) {
	var in struct{ Policy, Note string }
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	policy, err := torchwood.ParsePolicy([]byte(in.Policy))
	if err != nil {
		return nil, err
	}
	checkpoint, opened, err := torchwood.VerifyCheckpoint([]byte(in.Note), policy)
	if err != nil {
		return nil, err
	}
	times := map[string]int64{}
	for _, line := range opened.Sigs {
		if line.Name != checkpoint.Origin {
			if times[line.Name], err = torchwood.CosignatureTimestamp(line); err != nil {
				return nil, err
			}
		}
	}
	return object{"size": checkpoint.N, "root": checkpoint.Hash[:], "times": times}, nil
}

// verifyProof checks a tlog-proof of an entry under a policy.
func verifyProof(raw json.RawMessage) (object, error) {
	var in struct {
		Policy, Proof string
		Entry         []byte
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	policy, err := torchwood.ParsePolicy([]byte(in.Policy))
	if err != nil {
		return nil, err
	}
	return object{}, torchwood.VerifyProof(policy, tlog.RecordHash(in.Entry), []byte(in.Proof))
}

// formatProof writes a tlog-proof, with extra data where there is any.
func formatProof(raw json.RawMessage) (object, error) {
	var in struct {
		Index       int64
		Hashes      [][]byte
		Note, Extra string
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	var hashes tlog.RecordProof
	for _, one := range in.Hashes {
		hashes = append(hashes, tlog.Hash(one))
	}
	proof := torchwood.FormatProof(in.Index, hashes, []byte(in.Note))
	if in.Extra != "" {
		proof = torchwood.FormatProofWithExtraData(in.Index, []byte(in.Extra), hashes, []byte(in.Note))
	}
	return object{"proof": string(proof)}, nil
}

// readLog fetches a log's checkpoint, every entry, each compared with the tree, and a proof of the one at Index.
func readLog(raw json.RawMessage) (object, error) {
	var in struct {
		URL, Address, CA, Origin, Log string
		Index                         int64
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	verifier, err := note.NewVerifier(in.Log)
	if err != nil {
		return nil, err
	}
	plain, err := through(in.Address, in.CA)
	if err != nil {
		return nil, err
	}
	tiles, err := torchwood.NewTileFetcher(in.URL, torchwood.WithHTTPClient(plain))
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	signed, err := tiles.ReadEndpoint(ctx, "checkpoint")
	if err != nil {
		return nil, err
	}
	checkpoint, _, err := torchwood.VerifyCheckpoint(signed, torchwood.ThresholdPolicy(
		2, torchwood.OriginPolicy(in.Origin), torchwood.SingleVerifierPolicy(verifier),
	))
	if err != nil {
		return nil, err
	}
	reader, err := torchwood.NewClient(tiles)
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for _, entry := range reader.AllEntries(ctx, checkpoint.Tree, 0) {
		entries = append(entries, append([]byte(nil), entry...))
	}
	if err := reader.Err(); err != nil {
		return nil, err
	}
	if int64(len(entries)) != checkpoint.N {
		return nil, errors.New("there are not as many entries as the checkpoint says")
	}
	_, proof, err := reader.Entry(ctx, checkpoint.Tree, in.Index)
	if err != nil {
		return nil, err
	}
	return object{"entries": entries, "proof": string(torchwood.FormatProof(in.Index, proof, signed))}, nil
}

// through is a client to which every name leads to one address of loopback, where the authority in a file is trusted.
func through(address, ca string) (*http.Client, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	return &http.Client{Transport: &http.Transport{
		DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: roots},
	}}, nil
}
