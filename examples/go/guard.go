package main

// A client for Go: the two calls of a guard, by KServe's gRPC protocol. docs/classify.md and docs/streams.md say why.

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The index orders of every array of probabilities: Unsafe is 1.
var levels = []string{"Safe", "Unsafe", "Controversial"}

var categories = []string{
	"Violent",
	"Sexual Content or Sexual Acts",
	"Suicide & Self-Harm",
	"Politically Sensitive Topics",
	"PII",
	"Copyright Violation",
	"Non-violent Illegal Acts",
	"Unethical Acts",
	"Jailbreak",
}

const responseCategories = 8 // only prompts are judged for Jailbreak

const grace = time.Minute // a request that is cancelled on the wire may end Triton 24.10: gRPC's deadline comes later

var (
	verdictOutputs = []string{"SEVERITY", "CATEGORIES", "REFUSAL", "SEVERITY_PROBABILITIES", "STRICT_UNSAFE",
		"LOOSE_UNSAFE", "UNSAFE", "ANSWER_STATUS", "NOTICE"}
	stepOutputs = []string{"PENDING", "LENGTH", "FINAL_TOKENS", "FINAL_CHARACTERS", "TOKEN_ENDS", "RISK_PROBABILITIES",
		"CATEGORY_PROBABILITIES", "STRICT_FLAG", "LOOSE_FLAG", "FLAG"}
	openingOutputs = append([]string{"PROMPT_RISK_PROBABILITIES", "PROMPT_CATEGORY_PROBABILITIES", "PROMPT_FLAG",
		"NOTICE"}, stepOutputs...)
)

type guardError struct{ code, sentence string }

func (err *guardError) Error() string { return err.code + ": " + err.sentence }

func internal(sentence string) error { return &guardError{"INTERNAL", sentence} }

var (
	own    = regexp.MustCompile(`\[([A-Z][A-Z_]+)\] ([^\n]*)`)
	others = []struct{ words, code string }{ // what Triton and gRPC say, where the guard itself says nothing
		{"must specify the START flag", "SESSION_LOST"},
		{"expecting header", "TOKEN_REFUSED"},
		{"Stub process", "UNREACHABLE"},
		{"unknown model", "GUARD_NOT_SERVED"},
		{"is not ready", "GUARD_NOT_SERVED"},
		{"queue size", "OVERLOADED"},
		{"timeout expired", "DEADLINE_EXCEEDED"},
		{"timeout of the corresponding sequence", "DEADLINE_EXCEEDED"},
	}
	statuses = map[codes.Code]string{
		codes.Unavailable:      "UNREACHABLE",
		codes.Canceled:         "UNREACHABLE",
		codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
		codes.InvalidArgument:  "INVALID_REQUEST",
	}
)

func translated(failure error) error {
	found := status.Convert(failure)
	if match := own.FindStringSubmatch(found.Message()); match != nil {
		return &guardError{match[1], match[2]}
	}
	sentence := strings.SplitN(found.Message(), "\n", 2)[0]
	for _, other := range others {
		if strings.Contains(found.Message(), other.words) {
			return &guardError{other.code, sentence}
		}
	}
	if code, known := statuses[found.Code()]; known {
		return &guardError{code, sentence}
	}
	return internal(sentence)
}

type guard struct {
	connection *grpc.ClientConn
	timeout    time.Duration
	token      string
	scope      string // this client alone shares what was computed for its conversations
}

func dial(url string, timeout time.Duration, token string) (*guard, error) {
	connection, err := grpc.Dial(url, grpc.WithInsecure(), // beyond this machine: grpc.WithTransportCredentials
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return nil, translated(err)
	}
	return &guard{connection, timeout, token, newID()}, nil
}

func (guard *guard) close() { guard.connection.Close() }

func newID() string {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		panic(err)
	}
	return hex.EncodeToString(random[:])
}

// conversation holds PROMPT, with or without RESPONSE, or MESSAGES, by name.
type conversation map[string]string

type tensors map[string]*ModelInferRequest_InferInputTensor

func text(value string) (*ModelInferRequest_InferInputTensor, error) {
	if !utf8.ValidString(value) {
		return nil, &guardError{"INVALID_ENCODING", "The text is not valid UTF-8."}
	}
	contents := &InferTensorContents{BytesContents: [][]byte{[]byte(value)}}
	return &ModelInferRequest_InferInputTensor{Datatype: "BYTES", Shape: []int64{1, 1}, Contents: contents}, nil
}

func integer(value int64) *ModelInferRequest_InferInputTensor {
	contents := &InferTensorContents{Int64Contents: []int64{value}}
	return &ModelInferRequest_InferInputTensor{Datatype: "INT64", Shape: []int64{1, 1}, Contents: contents}
}

func (asked conversation) tensors() (tensors, error) {
	made := tensors{}
	for name, value := range asked {
		tensor, err := text(value)
		if err != nil {
			return nil, err
		}
		made[name] = tensor
	}
	return made, nil
}

type parameters map[string]*InferParameter

func flagged() *InferParameter {
	return &InferParameter{ParameterChoice: &InferParameter_BoolParam{BoolParam: true}}
}

func named(value string) *InferParameter {
	return &InferParameter{ParameterChoice: &InferParameter_StringParam{StringParam: value}}
}

// reply holds the values of each output by name, in the type of its tensor.
type reply struct {
	texts    map[string][]string
	integers map[string][]int64
	shares   map[string][]float64
	flags    map[string][]bool
}

// infer makes one request of batch size 1. A reply that lacks one of the outputs is an error.
func (guard *guard) infer(model string, inputs tensors, outputs []string, given parameters, session string) (*reply, error) {
	request := &ModelInferRequest{ModelName: model, Id: newID(), Parameters: map[string]*InferParameter{}}
	for name, tensor := range inputs {
		tensor.Name = name
		request.Inputs = append(request.Inputs, tensor)
	}
	for _, name := range outputs {
		request.Outputs = append(request.Outputs, &ModelInferRequest_InferRequestedOutputTensor{Name: name})
	}
	for name, value := range given {
		request.Parameters[name] = value
	}
	microseconds := &InferParameter_Int64Param{Int64Param: guard.timeout.Microseconds()}
	request.Parameters["timeout"] = &InferParameter{ParameterChoice: microseconds}
	ctx, cancel := context.WithTimeout(context.Background(), guard.timeout+grace)
	if guard.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "triton-grpc-protocol-guard-token", guard.token)
	}
	if session != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-guard-session", session)
	}
	answer := make(chan error, 1)
	response := &ModelInferResponse{}
	go func() {
		defer cancel()
		answer <- guard.connection.Invoke(ctx, "/inference.GRPCInferenceService/ModelInfer", request, response)
	}()
	select {
	case <-time.After(guard.timeout):
		return nil, &guardError{"DEADLINE_EXCEEDED", "The server did not answer in time."}
	case err := <-answer:
		if err != nil {
			return nil, translated(err)
		}
	}
	return read(response, outputs)
}

// read takes values that lie one behind the other, little-endian; a text has its length in bytes before it.
func read(response *ModelInferResponse, outputs []string) (*reply, error) {
	found := &reply{map[string][]string{}, map[string][]int64{}, map[string][]float64{}, map[string][]bool{}}
	counts := map[string]int64{}
	if len(response.RawOutputContents) != len(response.Outputs) {
		return nil, internal("The server's reply cannot be read.")
	}
	for index, output := range response.Outputs {
		name, raw, count := output.Name, response.RawOutputContents[index], int64(0)
		for ; len(raw) > 0; count++ {
			size := map[string]int{"BYTES": 4, "INT64": 8, "FP32": 4, "BOOL": 1}[output.Datatype]
			if size == 0 || len(raw) < size {
				return nil, internal("The server's reply cannot be read.")
			}
			value := raw[:size]
			raw = raw[size:]
			switch output.Datatype {
			case "BYTES":
				length := binary.LittleEndian.Uint32(value)
				if uint64(len(raw)) < uint64(length) {
					return nil, internal("The server's reply cannot be read.")
				}
				found.texts[name] = append(found.texts[name], string(raw[:length]))
				raw = raw[length:]
			case "INT64":
				found.integers[name] = append(found.integers[name], int64(binary.LittleEndian.Uint64(value)))
			case "FP32":
				share := float64(math.Float32frombits(binary.LittleEndian.Uint32(value)))
				if math.IsNaN(share) || math.IsInf(share, 0) {
					return nil, internal("The server's probabilities are not finite; they are no verdict.")
				}
				found.shares[name] = append(found.shares[name], share)
			case "BOOL":
				found.flags[name] = append(found.flags[name], value[0] != 0)
			}
		}
		expected := int64(1)
		for _, size := range output.Shape {
			expected *= size
		}
		if count != expected {
			return nil, internal(fmt.Sprintf("The server's %s is incomplete.", name))
		}
		counts[name] = count
	}
	for _, name := range outputs {
		if _, there := counts[name]; !there {
			return nil, internal(fmt.Sprintf("The server's reply has no %s.", name))
		}
	}
	return found, nil
}

type classification struct {
	Severity      string             `json:"severity"`
	Categories    []string           `json:"categories"`
	Refusal       *string            `json:"refusal"`
	Probabilities map[string]float64 `json:"probabilities"`
	Strict        bool               `json:"strict"`
	Loose         bool               `json:"loose"`
	Unsafe        bool               `json:"unsafe"`
	AnswerStatus  string             `json:"answer_status"`
	Notice        string             `json:"notice"`
}

// classify judges the last turn of a conversation.
func (guard *guard) classify(asked conversation) (*classification, error) {
	inputs, err := asked.tensors()
	if err != nil {
		return nil, err
	}
	reply, err := guard.infer("classify", inputs, verdictOutputs, parameters{"scope": named(guard.scope)}, "")
	if err != nil {
		return nil, err
	}
	found := &classification{
		Severity:      reply.texts["SEVERITY"][0],
		Categories:    append([]string{}, reply.texts["CATEGORIES"]...),
		Probabilities: byLevel(reply.shares["SEVERITY_PROBABILITIES"]),
		Strict:        reply.flags["STRICT_UNSAFE"][0],
		Loose:         reply.flags["LOOSE_UNSAFE"][0],
		Unsafe:        reply.flags["UNSAFE"][0],
		AnswerStatus:  reply.texts["ANSWER_STATUS"][0],
		Notice:        reply.texts["NOTICE"][0],
	}
	if refusal := reply.texts["REFUSAL"]; len(refusal) > 0 {
		found.Refusal = &refusal[0]
	}
	return found, nil
}

func byLevel(shares []float64) map[string]float64 {
	table := map[string]float64{}
	for index, name := range levels {
		table[name] = shares[index]
	}
	return table
}

func likeliest(shares []float64) (best int) {
	for index, share := range shares {
		if share > shares[best] {
			best = index
		}
	}
	return best
}

type judgement struct {
	Severity      string             `json:"severity"`
	Category      *string            `json:"category"`
	Probabilities map[string]float64 `json:"probabilities"`
	Flag          bool               `json:"flag"`
}

func judged(risks, likely []float64, flag bool) judgement {
	made := judgement{Severity: levels[likeliest(risks)], Probabilities: byLevel(risks), Flag: flag}
	if made.Severity != "Safe" {
		made.Category = &categories[likeliest(likely)]
	}
	return made
}

type token struct {
	judgement
	Position int64  `json:"position"`
	Text     string `json:"text"`
	End      int64  `json:"end"`
	Strict   bool   `json:"strict"`
	Loose    bool   `json:"loose"`
}

// stream is one response. An application also opens a lost session again (SESSION_LOST): docs/streams.md tells how, and
// the example for Node does it.
type stream struct {
	guard    *guard
	session  string
	position int64  // where the tokens that are not final begin
	tail     []rune // the text of these tokens
	begin    int64  // where that text begins in the response, in characters
	prompt   judgement
	notice   string
}

// stream opens a session under the server's own policy: what is written to it is the response to the conversation.
func (guard *guard) stream(asked conversation) (*stream, error) {
	made := &stream{guard: guard, session: newID()}
	inputs, err := asked.tensors()
	if err != nil {
		return nil, err
	}
	reply, err := made.send(inputs, openingOutputs, parameters{"sequence_start": flagged(), "scope": named(guard.scope)})
	if err != nil {
		made.end() // Triton keeps a record of a START that the guard refused, until its END
		return nil, err
	}
	made.position = reply.integers["LENGTH"][0]
	made.notice = reply.texts["NOTICE"][0]
	made.prompt = judged(reply.shares["PROMPT_RISK_PROBABILITIES"], reply.shares["PROMPT_CATEGORY_PROBABILITIES"],
		reply.flags["PROMPT_FLAG"][0])
	return made, nil
}

// step judges the next piece of the response. It returns the verdicts that no later text can change; those of its last
// tokens come with the next piece, or with finish.
func (stream *stream) step(piece string) ([]token, error) { return stream.write(piece, parameters{}) }

// finish ends the response, and returns the verdicts of the tokens that were not final.
func (stream *stream) finish() ([]token, error) {
	return stream.write("", parameters{"sequence_end": flagged()})
}

// end gives the stream up, also after an error: the server forgets the session.
func (stream *stream) end() {
	_, _ = stream.send(tensors{}, stepOutputs, parameters{"sequence_end": flagged()})
}

func (stream *stream) write(piece string, given parameters) ([]token, error) {
	characters := append(append([]rune{}, stream.tail...), []rune(piece)...)
	tensor, err := text(string(characters))
	if err != nil {
		return nil, err
	}
	reply, err := stream.send(tensors{"TEXT": tensor}, stepOutputs, given)
	if err != nil {
		return nil, err
	}
	risks, likely := reply.shares["RISK_PROBABILITIES"], reply.shares["CATEGORY_PROBABILITIES"]
	ends, final := reply.integers["TOKEN_ENDS"], reply.integers["FINAL_TOKENS"][0]
	if int64(len(ends)) < final || len(risks) != len(ends)*len(levels) || len(likely) != len(ends)*responseCategories {
		return nil, internal("The server has not judged each token.")
	}
	made := make([]token, 0, final)
	for index, at := int64(0), int64(0); index < final; index++ {
		row := judged(risks[index*int64(len(levels)):][:len(levels)],
			likely[index*responseCategories:][:responseCategories], reply.flags["FLAG"][index])
		made = append(made, token{row, stream.position + index, string(characters[at:ends[index]]),
			stream.begin + ends[index], reply.flags["STRICT_FLAG"][index], reply.flags["LOOSE_FLAG"][index]})
		at = ends[index]
	}
	spelled := reply.integers["FINAL_CHARACTERS"][0]
	stream.tail = characters[spelled:]
	stream.begin += spelled
	stream.position += final
	return made, nil
}

func (stream *stream) send(inputs tensors, outputs []string, given parameters) (*reply, error) {
	given["sequence_id"] = named(stream.session)
	for {
		inputs["POSITION"] = integer(stream.position)
		reply, err := stream.guard.infer("stream_step", inputs, outputs, given, stream.session)
		if err != nil || reply.integers["PENDING"][0] == 0 {
			return reply, err
		} // else the server's turn was over: the same step again
	}
}
