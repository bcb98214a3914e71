// Tessera drives the libraries of transparency-dev for a test: one JSON object on a line asks, one answers.
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
	"net/url"
	"os"
	"time"

	"github.com/transparency-dev/formats/log"
	f_note "github.com/transparency-dev/formats/note"
	tproof "github.com/transparency-dev/formats/proof"
	f_witness "github.com/transparency-dev/formats/witness"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"github.com/transparency-dev/tessera/storage/posix"
	w_http "github.com/transparency-dev/witness/client/http"
	"github.com/transparency-dev/witness/config"
	"github.com/transparency-dev/witness/omniwitness"
	"github.com/transparency-dev/witness/persistence/inmemory"
	"github.com/transparency-dev/witness/witness"
	"golang.org/x/mod/sumdb/note"
)

type object map[string]any

func main() {
	asked := map[string]func(json.RawMessage) (object, error){
		"check": check, "omniwitness": serveOmniwitness, "policy": policy, "proof": readProof, "grow": grow,
		"key": makeKey, "sign": sign, "submit": submit, "subtree": verifySubtree, "verify": verify,
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

// makeKey makes a key for cosignatures, type 4 or 6.
func makeKey(raw json.RawMessage) (object, error) {
	var in struct {
		Name string
		Type int
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	if in.Type == 6 {
		skey, vkey, err := f_note.GenerateMLDSAKey(in.Name)
		return object{"skey": skey, "vkey": vkey}, err
	}
	skey, vkey, err := note.GenerateKey(nil, in.Name)
	if err != nil || in.Type == 1 {
		return object{"skey": skey, "vkey": vkey}, err
	}
	vkey, err = f_note.VKeyToCosignatureV1(vkey)
	return object{"skey": skey, "vkey": vkey}, err
}

// sign signs a checkpoint's text: with type 1 as a log, else as a cosigner.
func sign(raw json.RawMessage) (object, error) {
	var in struct {
		Log, Cosigners []string
		Text           string
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	var signers []note.Signer
	for _, skey := range in.Log {
		one, err := note.NewSigner(skey)
		if err != nil {
			return nil, err
		}
		signers = append(signers, one)
	}
	for _, skey := range in.Cosigners {
		one, err := f_note.NewSignerForCosignatureV1(skey)
		if err != nil {
			return nil, err
		}
		signers = append(signers, one)
	}
	signed, err := note.Sign(&note.Note{Text: in.Text}, signers...)
	return object{"note": string(signed)}, err
}

// verify opens a note under one key of a log and any of cosigners, and says whose lines hold.
func verify(raw json.RawMessage) (object, error) {
	var in struct {
		Note, Origin, Log string
		Cosigners         []string
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	logVerifier, err := f_note.NewVerifier(in.Log)
	if err != nil {
		return nil, err
	}
	var others []note.Verifier
	for _, vkey := range in.Cosigners {
		other, err := f_note.NewVerifierForCosignatureV1(vkey)
		if err != nil {
			return nil, err
		}
		others = append(others, other)
	}
	checkpoint, _, opened, err := log.ParseCheckpoint([]byte(in.Note), in.Origin, logVerifier, others...)
	if err != nil {
		return nil, err
	}
	var verified []object
	for _, line := range opened.Sigs {
		one := object{"name": line.Name, "id": fmt.Sprintf("%08x", line.Hash)}
		if line.Hash != logVerifier.KeyHash() {
			when, err := f_note.CoSigV1Timestamp(line)
			if err != nil {
				return nil, err
			}
			one["time"] = when.Unix()
		}
		verified = append(verified, one)
	}
	return object{"size": checkpoint.Size, "root": checkpoint.Hash, "verified": verified}, nil
}

// verifySubtree checks a raw ML-DSA-44 signature of a subtree.
func verifySubtree(raw json.RawMessage) (object, error) {
	var in struct {
		Vkey, Origin    string
		Start, End      uint64
		Hash, Signature []byte
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	verifier, err := f_note.NewMLDSAVerifier(in.Vkey)
	if err != nil {
		return nil, err
	}
	// The library's signatures begin with their time, which is 0 here.
	for _, blob := range [][]byte{in.Signature, append(make([]byte, 8), in.Signature...)} {
		if verifier.VerifySubtree(0, in.Origin, in.Start, in.End, in.Hash, blob) {
			return object{"bytes": len(blob)}, nil
		}
	}
	return nil, errors.New("the signature does not verify")
}

// submit asks a witness, with the client of the witness's own repository.
func submit(raw json.RawMessage) (object, error) {
	var in struct {
		URL, Note string
		Old       uint64
		Proof     [][]byte
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	place, err := url.Parse(in.URL)
	if err != nil {
		return nil, err
	}
	lines, size, err := w_http.NewWitness(place, http.DefaultClient).Update(
		context.Background(), in.Old, []byte(in.Note), in.Proof,
	)
	for name, known := range map[string]error{
		"stale": witness.ErrCheckpointStale, "unknown log": witness.ErrUnknownLog,
		"no valid signature": witness.ErrNoValidSignature, "old size": witness.ErrOldSizeInvalid,
		"proof": witness.ErrInvalidProof, "pushback": witness.ErrPushback,
	} {
		if errors.Is(err, known) {
			return object{"refused": name, "size": size}, nil
		}
	}
	return object{"lines": string(lines)}, err
}

// serveOmniwitness starts one that forgets everything at its end, on a free port of loopback.
func serveOmniwitness(raw json.RawMessage) (object, error) {
	var in struct{ Keys []string }
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	memory := inmemory.New()
	var options omniwitness.OperatorConfig
	for _, skey := range in.Keys {
		signer, err := f_note.NewSignerForCosignatureV1(skey)
		if err != nil {
			return nil, err
		}
		options.WitnessKeys = append(options.WitnessKeys, signer)
		if options.WitnessVerifier == nil {
			options.WitnessVerifier = signer.Verifier()
		}
	}
	options.Logs = memory
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	// Which logs it follows is told to it over HTTP: our log has no keys yet when the witness has its own.
	options.ServeMux = http.NewServeMux()
	options.ServeMux.HandleFunc("POST /test-add-log", func(answer http.ResponseWriter, request *http.Request) {
		vkey, origin := request.FormValue("vkey"), request.FormValue("origin")
		verifier, err := f_note.NewVerifier(vkey)
		if err == nil {
			err = memory.AddLogs(request.Context(), []config.Log{{VKey: vkey, Verifier: verifier, Origin: origin}})
		}
		if err != nil {
			http.Error(answer, err.Error(), http.StatusBadRequest)
		}
	})
	go func() {
		err := omniwitness.Main(context.Background(), options, memory, listener, http.DefaultClient)
		fmt.Fprintln(os.Stderr, "omniwitness ended:", err)
	}()
	return object{"address": listener.Addr().String()}, nil
}

// policy reads a policy and says which witnesses it would ask, and whether a note satisfies it; twice, because the
// library that all use and the one in Tessera are not the same.
func policy(raw json.RawMessage) (object, error) {
	var in struct{ Policy, Note string }
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	shared, err := f_witness.ParsePolicy([]byte(in.Policy))
	if err != nil {
		return nil, err
	}
	own, err := tessera.NewWitnessGroupFromPolicy([]byte(in.Policy))
	if err != nil {
		return nil, err
	}
	var asked []string
	for place := range shared.Endpoints() {
		asked = append(asked, place)
	}
	satisfied := shared.Satisfied([]byte(in.Note))
	if satisfied != own.Satisfied([]byte(in.Note)) {
		return nil, errors.New("the two libraries do not agree")
	}
	return object{"asked": asked, "satisfied": satisfied}, nil
}

// readProof reads a tlog-proof, checks the inclusion under the checkpoint's root, and writes the proof again.
func readProof(raw json.RawMessage) (object, error) {
	var in struct {
		Proof, Origin, Log string
		Entry              []byte
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	var read tproof.TLogProof
	if err := read.Unmarshal([]byte(in.Proof)); err != nil {
		return nil, err
	}
	verifier, err := f_note.NewVerifier(in.Log)
	if err != nil {
		return nil, err
	}
	checkpoint, _, _, err := log.ParseCheckpoint(read.Checkpoint, in.Origin, verifier)
	if err != nil {
		return nil, err
	}
	var hashes [][]byte
	for _, one := range read.Hashes {
		hashes = append(hashes, one[:])
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(in.Entry)
	err = proof.VerifyInclusion(rfc6962.DefaultHasher, read.Index, checkpoint.Size, leaf, hashes, checkpoint.Hash)
	return object{"index": read.Index, "proof": string(read.Marshal())}, err
}

// check fetches a whole log and compares every tile with its entries.
func check(raw json.RawMessage) (object, error) {
	var in struct{ URL, Address, CA, Origin, Log string }
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	place, err := url.Parse(in.URL)
	if err != nil {
		return nil, err
	}
	plain, err := through(in.Address, in.CA)
	if err != nil {
		return nil, err
	}
	source, err := client.NewHTTPFetcher(place, plain)
	if err != nil {
		return nil, err
	}
	verifier, err := f_note.NewVerifier(in.Log)
	if err != nil {
		return nil, err
	}
	entries := 0
	checker := fsck.New(in.Origin, verifier, source, func(raw []byte) ([][]byte, error) {
		var bundle api.EntryBundle
		if err := bundle.UnmarshalText(raw); err != nil {
			return nil, err
		}
		var hashes [][]byte
		for _, entry := range bundle.Entries {
			hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(entry))
		}
		entries += len(hashes)
		return hashes, nil
	}, fsck.Opts{N: 1})
	err = checker.Check(context.Background())
	return object{"entries": entries}, err
}

// grow adds entries to a log of Tessera's in a directory, and waits until it has published a checkpoint, which
// takes the cosignatures of the policy's witnesses.
func grow(raw json.RawMessage) (object, error) {
	var in struct {
		Directory, Key, Policy string
		Entries                [][]byte
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: in.Directory})
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(in.Key)
	if err != nil {
		return nil, err
	}
	group, err := tessera.NewWitnessGroupFromPolicy([]byte(in.Policy))
	if err != nil {
		return nil, err
	}
	options := tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(uint(len(in.Entries)), 100*time.Millisecond).WithCheckpointInterval(100*time.Millisecond).
		WithWitnesses(group, &tessera.WitnessOptions{Timeout: 5 * time.Second})
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return nil, err
	}
	waiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 50*time.Millisecond)
	var added []tessera.IndexFuture
	for _, entry := range in.Entries {
		added = append(added, appender.Add(ctx, tessera.NewEntry(entry)))
	}
	var published []byte
	for _, one := range added {
		if _, published, err = waiter.Await(ctx, one); err != nil {
			return nil, err
		}
	}
	return object{"checkpoint": string(published)}, shutdown(ctx)
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
