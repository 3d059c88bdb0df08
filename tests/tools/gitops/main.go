// gitops tells how GitOps tools read the status of an object, by what they themselves read it with.
//
//	gitops kstatus < OBJECT.json          the word and the sentence of kstatus, which Flux waits by
//	gitops argocd HEALTH.lua < OBJECT.json  what a health script of Argo CD says, in the interpreter of Argo CD
//
// The answer is one JSON object {"status": …, "message": …}. Exit code 1 and a sentence on standard error if there is none.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type answer struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	found, err := run(os.Args[1:], os.Stdin)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gitops:", err)
		os.Exit(1)
	}
}

func run(arguments []string, input io.Reader) (answer, error) {
	object := map[string]any{}
	if err := json.NewDecoder(input).Decode(&object); err != nil {
		return answer{}, err
	}
	switch {
	case len(arguments) == 1 && arguments[0] == "kstatus":
		result, err := status.Compute(&unstructured.Unstructured{Object: whole(object).(map[string]any)})
		if err != nil {
			return answer{}, err
		}
		return answer{result.Status.String(), result.Message}, nil
	case len(arguments) == 2 && arguments[0] == "argocd":
		return health(arguments[1], object)
	}
	return answer{}, errors.New("say `kstatus`, or `argocd` and a script")
}

// whole makes integers of whole numbers, as Kubernetes' own decoder does.
func whole(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for key, inner := range value {
			value[key] = whole(inner)
		}
	case []any:
		for index, inner := range value {
			value[index] = whole(inner)
		}
	case float64:
		if value == float64(int64(value)) {
			return int64(value)
		}
	}
	return value
}

// health runs a script as Argo CD does: without libraries that reach outside, the object in the global `obj`, a table returned.
func health(path string, object map[string]any) (answer, error) {
	script, err := os.ReadFile(path)
	if err != nil {
		return answer{}, err
	}
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage},
		{lua.BaseLibName, lua.OpenBase},
		{lua.TabLibName, lua.OpenTable},
		{lua.StringLibName, lua.OpenString},
	} {
		if err := state.CallByParam(
			lua.P{Fn: state.NewFunction(library.open), NRet: 0, Protect: true}, lua.LString(library.name),
		); err != nil {
			return answer{}, err
		}
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(string(script)); err != nil {
		return answer{}, err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return answer{}, errors.New("the script returns no table")
	}
	text := func(name string) string { return lua.LVAsString(table.RawGetString(name)) }
	return answer{text("status"), text("message")}, nil
}

func value(state *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, inner := range from {
			table.RawSetString(key, value(state, inner))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, inner := range from {
			table.Append(value(state, inner))
		}
		return table
	case string:
		return lua.LString(from)
	case float64:
		return lua.LNumber(from)
	case bool:
		return lua.LBool(from)
	}
	return lua.LNil
}
