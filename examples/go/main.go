// Command guard judges a conversation, or a response that arrives on standard input, and prints lines of JSON.
//
//	guard classify -prompt "How do I bake bread?" [-response TEXT | -messages JSON]
//	guard stream -prompt "How do I bake bread?" < response.txt
//
// A failure is one sentence with its code on standard error, and exit status 1; with -exit-code, what is unsafe is exit
// status 10. The file open_inference_grpc.pb.go is generated: docs/classify.md tells how.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

const unsafeStatus = 10

func main() {
	unsafe, exitCode, err := run(os.Args[1:])
	var known *guardError
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.As(err, &known):
		fmt.Fprintf(os.Stderr, "%s: %s\n", known.code, known.sentence)
		os.Exit(1)
	case err != nil:
		fmt.Fprintf(os.Stderr, "INTERNAL: %v\n", err)
		os.Exit(1)
	case unsafe && exitCode:
		os.Exit(unsafeStatus)
	}
}

func run(arguments []string) (unsafe, exitCode bool, err error) {
	verbs := map[string]func(*guard, conversation) (bool, error){"classify": runClassify, "stream": runStream}
	if len(arguments) == 0 || verbs[arguments[0]] == nil {
		return false, false, &guardError{"INVALID_REQUEST", "Give one verb: classify or stream."}
	}
	flags := flag.NewFlagSet("guard", flag.ContinueOnError)
	url := flags.String("url", "127.0.0.1:8001", "the guard's server")
	timeout := flags.Float64("timeout", 30, "how many seconds an answer may take")
	exit := flags.Bool("exit-code", false, "exit with 10 where something is unsafe")
	prompt := flags.String("prompt", "", "the user's text")
	response := flags.String("response", "", "the response to it")
	messages := flags.String("messages", "", "a conversation as JSON in OpenAI's form, in place of a prompt")
	if err := flags.Parse(arguments[1:]); err != nil {
		return false, false, err
	}
	if flags.NArg() > 0 {
		return false, false, &guardError{"INVALID_REQUEST", "There is an argument that is no option."}
	}
	asked := conversation{}
	flags.Visit(func(given *flag.Flag) {
		switch given.Name {
		case "prompt":
			asked["PROMPT"] = *prompt
		case "response":
			asked["RESPONSE"] = *response
		case "messages":
			asked["MESSAGES"] = *messages
		}
	})
	guard, err := dial(*url, time.Duration(*timeout*float64(time.Second)), os.Getenv("QWEN3GUARD_TOKEN"))
	if err != nil {
		return false, false, err
	}
	defer guard.close()
	unsafe, err = verbs[arguments[0]](guard, asked)
	return unsafe, *exit, err
}

func say(found interface{}) error {
	return json.NewEncoder(os.Stdout).Encode(found)
}

func runClassify(guard *guard, asked conversation) (bool, error) {
	found, err := guard.classify(asked)
	if err != nil {
		return false, err
	}
	return found.Unsafe, say(found)
}

func runStream(guard *guard, asked conversation) (flagged bool, err error) {
	stream, err := guard.stream(asked)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			stream.end()
		}
	}()
	if err = say(map[string]interface{}{"prompt": stream.prompt, "notice": stream.notice}); err != nil {
		return false, err
	}
	flagged = stream.prompt.Flag
	show := func(tokens []token, failed error) error {
		for _, each := range tokens {
			flagged = flagged || each.Flag
			if err := say(each); err != nil {
				return err
			}
		}
		return failed
	}
	in := bufio.NewReader(os.Stdin)
	var piece strings.Builder
	for {
		character, size, failed := in.ReadRune()
		if failed == io.EOF {
			break
		} else if failed != nil {
			return false, failed
		} else if character == utf8.RuneError && size == 1 {
			return false, &guardError{"INVALID_ENCODING", "Standard input is not valid UTF-8."}
		}
		piece.WriteRune(character)
		if in.Buffered() == 0 { // what has arrived so far is one piece
			if err = show(stream.step(piece.String())); err != nil {
				return false, err
			}
			piece.Reset()
		}
	}
	if piece.Len() > 0 {
		if err = show(stream.step(piece.String())); err != nil {
			return false, err
		}
	}
	return flagged, show(stream.finish())
}
