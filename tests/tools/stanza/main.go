// Command stanza reads configuration as Vault, OpenBao and Boundary do, and uses the keys that it names. Tests hold
// what the operator writes for them against it.
//
//	stanza read                    HCL documents, each ended by a zero byte, on standard input; a line of JSON for each on
//	                               standard output: what HCL v1 (the readers of all three products) and HCL v2 make of it
//	stanza wrap   FILE PURPOSE     plaintext on standard input, base64 of the BlobInfo message on standard output
//	stanza unwrap FILE PURPOSE     base64 of the BlobInfo message on standard input, plaintext on standard output
//
// FILE holds `kms` or `seal` blocks. PURPOSE picks the block that lists it, as Boundary does: a `previous-root` is pooled
// behind `root`. A `seal` block has no purpose: there, `-` picks the first one that is not disabled.
//
// Any mistake is told on standard error, with exit status 1.
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/v2/aead"
	"github.com/hashicorp/go-kms-wrapping/v2/extras/multi"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/ocikms/v2"
	hcl1 "github.com/hashicorp/hcl"
	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	ctyjson "github.com/zclconf/go-cty/cty/json"
	"google.golang.org/protobuf/proto"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stanza:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	switch {
	case len(args) == 1 && args[0] == "read":
		return read(input)
	case len(args) == 3 && args[0] == "wrap":
		wrapper, err := configured(args[1], args[2])
		if err != nil {
			return err
		}
		blob, err := wrapper.Encrypt(context.Background(), input)
		if err != nil {
			return err
		}
		message, err := proto.Marshal(blob)
		fmt.Println(base64.StdEncoding.EncodeToString(message))
		return err
	case len(args) == 3 && args[0] == "unwrap":
		wrapper, err := configured(args[1], args[2])
		if err != nil {
			return err
		}
		message, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(input)))
		if err != nil {
			return fmt.Errorf("standard input is not base64: %w", err)
		}
		blob := new(wrapping.BlobInfo)
		if err := proto.Unmarshal(message, blob); err != nil {
			return fmt.Errorf("standard input is not a BlobInfo message: %w", err)
		}
		plaintext, err := wrapper.Decrypt(context.Background(), blob)
		if err == nil {
			_, err = os.Stdout.Write(plaintext)
		}
		return err
	}
	return errors.New("the arguments must be: read, or wrap FILE PURPOSE, or unwrap FILE PURPOSE")
}

// A block as both readers are asked to see it.
type block struct {
	Kind   string         `json:"kind"`
	Label  string         `json:"label"`
	Values map[string]any `json:"values"`
}

func read(input []byte) error {
	output := json.NewEncoder(os.Stdout)
	output.SetEscapeHTML(false)
	for document := range bytes.SplitSeq(bytes.TrimSuffix(input, []byte{0}), []byte{0}) {
		old, err := readV1(document)
		if err != nil {
			return fmt.Errorf("HCL v1: %w in %q", err, document)
		}
		current, err := readV2(document)
		if err != nil {
			return fmt.Errorf("HCL v2: %w in %q", err, document)
		}
		if err := output.Encode(map[string][]block{"v1": old, "v2": current}); err != nil {
			return err
		}
	}
	return nil
}

// readV1 decodes into maps, as the configuration readers of Vault, OpenBao and Boundary do: a block is a list of maps
// from its label to a list of maps.
func readV1(document []byte) ([]block, error) {
	var file map[string]any
	if err := hcl1.Decode(&file, string(document)); err != nil {
		return nil, err
	}
	var blocks []block
	for _, kind := range []string{"seal", "kms"} {
		items, _ := file[kind].([]map[string]any)
		for _, item := range items {
			for label, bodies := range item {
				for _, body := range bodies.([]map[string]any) {
					blocks = append(blocks, block{kind, label, body})
				}
			}
		}
		delete(file, kind)
	}
	if len(file) > 0 {
		blocks = append(blocks, block{"", "", file})
	}
	return blocks, nil
}

func readV2(document []byte) ([]block, error) {
	file, problems := hclsyntax.ParseConfig(document, "stanza.hcl", hcl2.InitialPos)
	if problems.HasErrors() {
		return nil, problems
	}
	body := file.Body.(*hclsyntax.Body)
	var blocks []block
	for _, found := range body.Blocks {
		if len(found.Labels) != 1 || len(found.Body.Blocks) > 0 {
			return nil, fmt.Errorf("block %s has %d labels", found.Type, len(found.Labels))
		}
		values, err := valuesV2(found.Body)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, block{found.Type, found.Labels[0], values})
	}
	if len(body.Attributes) > 0 {
		values, err := valuesV2(body)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, block{"", "", values})
	}
	return blocks, nil
}

func valuesV2(body *hclsyntax.Body) (map[string]any, error) {
	values := map[string]any{}
	for name, attribute := range body.Attributes {
		value, problems := attribute.Expr.Value(nil)
		if problems.HasErrors() {
			return nil, problems
		}
		text, err := ctyjson.Marshal(value, value.Type())
		if err != nil {
			return nil, err
		}
		values[name] = json.RawMessage(text)
	}
	return values, nil
}

// configured makes the wrapper for a purpose.
func configured(path, purpose string) (wrapping.Wrapper, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	blocks, err := readV1(text)
	if err != nil {
		return nil, err
	}
	if purpose == "-" {
		for _, seal := range blocks {
			if seal.Kind == "seal" && seal.Values["disabled"] == nil {
				return wrapper(seal)
			}
		}
		return nil, fmt.Errorf("no seal in %s is in use", path)
	}
	of := func(purpose string) (*block, error) {
		var found *block
		for i, kms := range blocks {
			purposes := strings.Split(fmt.Sprint(kms.Values["purpose"]), ",")
			if kms.Kind != "kms" || !slices.Contains(purposes, purpose) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("two blocks have purpose %s", purpose)
			}
			found = &blocks[i]
		}
		return found, nil
	}
	own, err := of(purpose)
	if err != nil {
		return nil, err
	}
	if own == nil {
		return nil, fmt.Errorf("no block in %s has purpose %s", path, purpose)
	}
	current, err := wrapper(*own)
	if err != nil || purpose != "root" {
		return current, err
	}
	// Boundary opens with a root key and the one before it, and wraps with the former only.
	previous, err := of("previous-root")
	if err != nil || previous == nil {
		return current, err
	}
	before, err := wrapper(*previous)
	if err != nil {
		return nil, err
	}
	pool, err := multi.NewPooledWrapper(context.Background(), current)
	if err != nil {
		return nil, err
	}
	if added, err := pool.AddWrapper(context.Background(), before); err != nil || !added {
		return nil, fmt.Errorf("root and previous-root have the same key id (%w)", err)
	}
	return pool, nil
}

// wrapper configures one from the block's values, with the key id as an option beside them, as Boundary and Vault do.
func wrapper(from block) (wrapping.Wrapper, error) {
	var made wrapping.Wrapper
	switch from.Label {
	case "aead":
		made = aead.NewWrapper()
	case "awskms":
		made = awskms.NewWrapper()
	case "ocikms":
		made = ocikms.NewWrapper()
	default:
		return nil, fmt.Errorf("no wrapper is named %q", from.Label)
	}
	values := map[string]string{}
	for name, value := range from.Values {
		if name == "purpose" || name == "disabled" || name == "name" || name == "priority" {
			continue
		}
		text, ok := value.(string)
		if !ok {
			return nil, fmt.Errorf("%s is no text", name)
		}
		values[name] = text
	}
	_, err := made.SetConfig(context.Background(), wrapping.WithKeyId(values["key_id"]), wrapping.WithConfigMap(values))
	return made, err
}
