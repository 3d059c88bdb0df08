// Command ocikms wraps and unwraps with the Go library that Vault, OpenBao and Boundary use for the seal of the
// same name. Tests hold the operator's own reader and writer of wrapped keys against it, in both directions.
//
//	ocikms wrap   FLAGS   plaintext on standard input, base64 of the BlobInfo message on standard output
//	ocikms unwrap FLAGS   base64 of the BlobInfo message on standard input, plaintext on standard output
//	ocikms state  FLAGS   the wrapper's type and its current key id, which is the key's version, on one line
//
// Each command begins with the check that the library makes itself: one encryption, and one look at the key.
// Any mistake is told on standard error, with exit status 1.
//
// With -auth-type-api-key the SDK reads ~/.oci/config, where ~ is the home folder of the user database whatever HOME
// says, and only if there is no such file the one that OCI_CONFIG_FILE names. Without it the SDK looks for the
// metadata of an instance at its fixed address, where no test server can listen.
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/ocikms/v2"
	"google.golang.org/protobuf/proto"
)

// A command makes its output from what was read from standard input.
type command func(wrapper *ocikms.Wrapper, input []byte, aad wrapping.Option) ([]byte, error)

var commands = map[string]command{"wrap": wrap, "unwrap": unwrap, "state": state}

func main() {
	output, err := run(os.Args[1:])
	if err == nil {
		_, err = os.Stdout.Write(output)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ocikms:", err)
		os.Exit(1)
	}
}

func run(args []string) (output []byte, err error) {
	// The library panics where a blob has no key_info; a test wants an answer that it can tell from a crash.
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("the library panicked: %v", caught)
		}
	}()
	if len(args) == 0 || commands[args[0]] == nil {
		return nil, errors.New("the first argument must be wrap, unwrap or state")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	keyID := flags.String("key-id", "", "OCID of the key")
	crypto := flags.String("crypto-endpoint", "", "URL of the vault's cryptographic endpoint")
	management := flags.String("management-endpoint", "", "URL of the vault's management endpoint")
	apiKey := flags.Bool("auth-type-api-key", false, "use the SDK's file and not the instance principal")
	aadText := flags.String("aad", "", "base64 of the additional authenticated data")
	if err := flags.Parse(args[1:]); err != nil {
		return nil, err
	}
	aad, err := base64.StdEncoding.DecodeString(*aadText)
	if err != nil || flags.NArg() > 0 {
		return nil, fmt.Errorf("-aad must be base64 and nothing may follow the flags, but there is %q", flags.Args())
	}
	if err := checkConfigFile(); *apiKey && err != nil {
		return nil, err
	}
	var input []byte
	if args[0] != "state" {
		if input, err = io.ReadAll(os.Stdin); err != nil {
			return nil, err
		}
	}
	wrapper := ocikms.NewWrapper()
	// The wrapper ignores a key id in the map, and would prefer the environment to all that it is given here.
	_, err = wrapper.SetConfig(context.Background(), wrapping.WithKeyId(*keyID), wrapping.WithDisallowEnvVars(true),
		wrapping.WithConfigMap(map[string]string{
			ocikms.KmsConfigCryptoEndpoint:     *crypto,
			ocikms.KmsConfigManagementEndpoint: *management,
			ocikms.KmsConfigAuthTypeApiKey:     strconv.FormatBool(*apiKey),
		}))
	if err != nil {
		return nil, err
	}
	return commands[args[0]](wrapper, input, wrapping.WithAad(aad))
}

func wrap(wrapper *ocikms.Wrapper, plaintext []byte, aad wrapping.Option) ([]byte, error) {
	blob, err := wrapper.Encrypt(context.Background(), plaintext, aad)
	if err != nil {
		return nil, err
	}
	message, err := proto.Marshal(blob)
	return []byte(base64.StdEncoding.EncodeToString(message) + "\n"), err
}

func unwrap(wrapper *ocikms.Wrapper, text []byte, aad wrapping.Option) ([]byte, error) {
	message, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("standard input is not base64: %w", err)
	}
	blob := new(wrapping.BlobInfo)
	if err := proto.Unmarshal(message, blob); err != nil {
		return nil, fmt.Errorf("standard input is not a BlobInfo message: %w", err)
	}
	return wrapper.Decrypt(context.Background(), blob, aad)
}

func state(wrapper *ocikms.Wrapper, _ []byte, _ wrapping.Option) ([]byte, error) {
	kind, _ := wrapper.Type(context.Background())
	keyID, err := wrapper.KeyId(context.Background())
	return fmt.Appendln(nil, kind, keyID), err
}

// checkConfigFile refuses to run where the SDK would use the developer's own identity in place of the test's.
func checkConfigFile() error {
	wanted := os.Getenv("OCI_CONFIG_FILE")
	current, err := user.Current()
	if wanted == "" || err != nil {
		return nil
	}
	own := filepath.Join(current.HomeDir, ".oci", "config")
	if _, err := os.Stat(own); err == nil && own != wanted {
		return fmt.Errorf("the SDK reads %s and not %s, which OCI_CONFIG_FILE names; move the former away", own, wanted)
	}
	return nil
}
