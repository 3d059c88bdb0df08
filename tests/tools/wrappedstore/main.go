// Command wrappedstore opens a copy of the operator's wrapped store, by docs/store.md alone: with the clouds' own SDKs
// and go-kms-wrapping, and without a line of the operator. Tests hold the operator's copies against it.
//
//	wrappedstore FLAGS    base64 of an entry of the store on standard input, the key's bytes on standard output
//
// Any mistake is told on standard error, with exit status 1; "data key:" means that the KMS refused, "payload:" that
// the envelope did.
//
// The AWS SDK takes identity and region from the environment; the OCI SDK an API key from the file that OCI_CONFIG_FILE
// names.
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/oracle/oci-go-sdk/v60/common"
	"github.com/oracle/oci-go-sdk/v60/keymanagement"
	"google.golang.org/protobuf/proto"
)

// place is what a copy is bound to; the fields stand in the order of the additional data.
type place struct {
	Binding   string `json:"binding"`
	Domain    string `json:"domain"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Class     string `json:"class"`
	Item      string `json:"item"`
	Version   int    `json:"version"`
}

func (p place) context() map[string]string {
	return map[string]string{
		"autounseal.dev/binding":         p.Binding,
		"autounseal.dev/domain":          p.Domain,
		"autounseal.dev/kind":            p.Kind,
		"autounseal.dev/bound-namespace": p.Namespace,
		"autounseal.dev/name":            p.Name,
		"autounseal.dev/class":           p.Class,
		"autounseal.dev/item":            p.Item,
		"autounseal.dev/version":         strconv.Itoa(p.Version),
	}
}

func (p place) aad() []byte {
	var out []byte
	for _, part := range []string{p.Binding, p.Domain, p.Kind, p.Namespace, p.Name, p.Class, p.Item, strconv.Itoa(p.Version)} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

func main() {
	output, err := run(os.Args[1:])
	if err == nil {
		_, err = os.Stdout.Write(output)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "wrappedstore:", err)
		os.Exit(1)
	}
}

func run(args []string) ([]byte, error) {
	flags := flag.NewFlagSet("wrappedstore", flag.ContinueOnError)
	provider := flags.String("provider", "", "awskms or ocikms, as the header says")
	keyID := flags.String("key-id", "", "keyID of the copy, as the header says")
	endpoint := flags.String("endpoint", "", "URL of the KMS; for OCI the vault's cryptographic endpoint")
	bound := flags.String("place", "", "JSON of the place")
	payload := flags.String("payload-place", "", "JSON of another place for the payload alone, to see that it does not open")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	kmsPlace, err := read(*bound)
	if err != nil {
		return nil, err
	}
	payloadPlace := kmsPlace
	if *payload != "" {
		if payloadPlace, err = read(*payload); err != nil {
			return nil, err
		}
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, err
	}
	message, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("standard input is not base64: %w", err)
	}
	blob := new(wrapping.BlobInfo)
	if err := proto.Unmarshal(message, blob); err != nil {
		return nil, fmt.Errorf("standard input is not a BlobInfo message: %w", err)
	}
	if blob.KeyInfo == nil {
		return nil, errors.New("the message has no key_info")
	}
	var dataKey []byte
	switch *provider {
	case "awskms":
		dataKey, err = byAWS(*endpoint, *keyID, blob.KeyInfo.WrappedKey, kmsPlace.context())
	case "ocikms":
		dataKey, err = byOCI(*endpoint, *keyID, blob.KeyInfo.WrappedKey, kmsPlace.context())
	default:
		err = errors.New("-provider must be awskms or ocikms")
	}
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	envelope := &wrapping.EnvelopeInfo{Ciphertext: blob.Ciphertext, Iv: blob.Iv, Key: dataKey}
	plaintext, err := wrapping.EnvelopeDecrypt(envelope, wrapping.WithAad(payloadPlace.aad()))
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return plaintext, nil
}

func read(text string) (place, error) {
	var out place
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&out); err != nil {
		return out, fmt.Errorf("a place must be JSON: %w", err)
	}
	return out, nil
}

func byAWS(endpoint, keyID string, wrapped []byte, bound map[string]string) ([]byte, error) {
	client := kms.New(kms.Options{
		Region: os.Getenv("AWS_REGION"),
		Credentials: credentials.NewStaticCredentialsProvider(
			os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")),
		BaseEndpoint: aws.String(endpoint),
	})
	answer, err := client.Decrypt(context.Background(), &kms.DecryptInput{
		CiphertextBlob:    wrapped,
		EncryptionContext: bound,
		KeyId:             aws.String(keyID),
	})
	if err != nil {
		return nil, err
	}
	return answer.Plaintext, nil
}

// byOCI: the wrapped data key is the text that the vault answered, which go-kms-wrapping keeps as it is.
func byOCI(endpoint, keyID string, wrapped []byte, bound map[string]string) ([]byte, error) {
	identity, err := common.ConfigurationProviderFromFile(os.Getenv("OCI_CONFIG_FILE"), "")
	if err != nil {
		return nil, err
	}
	client, err := keymanagement.NewKmsCryptoClientWithConfigurationProvider(identity, endpoint)
	if err != nil {
		return nil, err
	}
	answer, err := client.Decrypt(context.Background(), keymanagement.DecryptRequest{
		DecryptDataDetails: keymanagement.DecryptDataDetails{
			Ciphertext:     common.String(string(wrapped)),
			KeyId:          common.String(keyID),
			AssociatedData: bound,
		},
	})
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(*answer.Plaintext)
}
