//! The worker against transformers on tiny random models: `tests/golden/README.md` has the formats.
//!
//! In: the golden files. Out: equal ids, texts and greedy choices; logits, scores and log-probs within
//! 1e-4. May not enter: anything that makes golden values.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::path::{Path, PathBuf};

use rlhfd_protocol::worker::{Arm, Finish, Message, Purpose, ScorePosition};
use rlhfd_worker::generate::{Generation, PromptTask, Written, generate_batch};
use rlhfd_worker::logprob::{Sequence, host_floats, response_logprobs};
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::render::{PairText, RenderRule, Renderer, Turn};
use rlhfd_worker::score::{score_batch, scored_position};
use rlhfd_worker::template::ChatTemplate;
use rlhfd_worker::tokenizer::AddSpecial;
use rlhfd_worker::watch::Watch;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tch::{Device, Tensor};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn folder(model: &str) -> ModelFolder {
    ModelFolder::open(&golden("models").join(model)).unwrap()
}

fn load(folder: &ModelFolder) -> Transformer {
    let options = LoadOptions {
        devices: Devices::one(Device::Cpu),
        precision: Precision::Float32,
        trainable: Trainable::Nothing,
    };
    Transformer::load(folder, &options).unwrap()
}

fn ids_tensor(ids: &[u32]) -> Tensor {
    Tensor::from_slice(&ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>()).unsqueeze(0)
}

fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: lengths");
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}: value {index} is {a}, golden {b}");
    }
}

#[derive(Deserialize)]
struct ByModel<C> {
    model: String,
    cases: Vec<C>,
}

#[derive(Deserialize)]
struct LogitsCase {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

#[test]
fn logits_equal_those_of_transformers_padded_packed_or_alone() {
    for entry in read::<Vec<ByModel<LogitsCase>>>("logits.json") {
        let model = load(&folder(&entry.model));
        assert!(!entry.cases.is_empty());
        for case in &entry.cases {
            let golden: Vec<f32> = case.logits.iter().flatten().copied().collect();
            let length = case.ids.len() as i64;
            let alone = host_floats(&model.logits(&model.hidden(&ids_tensor(&case.ids))));
            assert_close(&alone, &golden, 1e-4, &entry.model);
            // Right padding, with an id that occurs in the text, changes nothing.
            let padded: Vec<u32> = [case.ids.as_slice(), &[2; 5]].concat();
            let hidden = model.hidden(&ids_tensor(&padded)).narrow(1, 0, length);
            assert_close(&host_floats(&model.logits(&hidden)), &golden, 1e-4, "padded");
            // Nor do neighbours in a packed row.
            let packed: Vec<u32> = [&[3, 1, 4], case.ids.as_slice(), &[5, 9]].concat();
            let hidden = model.hidden_packed(&ids_tensor(&packed), &[3, length, 2]);
            let own = host_floats(&model.logits(&hidden.narrow(1, 3, length)));
            assert_close(&own, &golden, 1e-4, "packed");
        }
    }
}

#[derive(Deserialize)]
struct GreedyCase {
    prompt_ids: Vec<u32>,
    max_new_tokens: u32,
    token_ids: Vec<u32>,
    finish: Finish,
}

fn greedy(renderer: &Renderer, max_new_tokens: u32) -> Generation {
    let arm = Arm {
        name: "greedy".into(),
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        n: 1,
        first_sample: 0,
    };
    Generation {
        run_seed: 0,
        purpose: Purpose::Generate,
        iteration: 0,
        arms: vec![arm],
        max_new_tokens,
        stop_ids: renderer.tokenizer.stop_ids.clone(),
    }
}

#[test]
fn greedy_responses_equal_those_of_transformers_alone_and_in_a_batch() {
    for entry in read::<Vec<ByModel<GreedyCase>>>("greedy.json") {
        let folder = folder(&entry.model);
        let (model, renderer) = (load(&folder), Renderer::open(&folder).unwrap());
        let task = |case: &GreedyCase| PromptTask { ids: case.prompt_ids.clone(), occurrence: 0 };
        let check = |case: &GreedyCase, written: &Written| {
            let Written::Responses(responses) = written else { panic!("not finite") };
            let wanted = &case.token_ids[..];
            assert_eq!(responses[0].ids, wanted, "{} {:?}", entry.model, case.prompt_ids);
            assert_eq!(responses[0].finish, case.finish);
        };
        let watch = Watch::default();
        for case in &entry.cases {
            let generation = greedy(&renderer, case.max_new_tokens);
            let alone = generate_batch(&model, &[task(case)], &generation, &watch).unwrap();
            check(case, &alone[0]);
        }
        // All prompts of one limit together: unequal lengths, rows that leave early.
        let limit = entry.cases[0].max_new_tokens;
        let alike: Vec<&GreedyCase> =
            entry.cases.iter().filter(|case| case.max_new_tokens == limit).collect();
        let tasks: Vec<PromptTask> = alike.iter().map(|case| task(case)).collect();
        let generation = greedy(&renderer, limit);
        let together = generate_batch(&model, &tasks, &generation, &watch).unwrap();
        for (case, written) in alike.iter().zip(&together) {
            check(case, written);
        }
    }
}

#[test]
fn responses_do_not_depend_on_batch_or_arm_and_their_logprobs_are_those_of_logprobs() {
    let folder = folder("tiny-tied");
    let (model, renderer) = (load(&folder), Renderer::open(&folder).unwrap());
    let arm = |temperature, top_p, top_k, n, first_sample| {
        let name = String::new();
        Arm { name, temperature, top_p, top_k, n, first_sample }
    };
    let mut generation = Generation {
        run_seed: 11,
        purpose: Purpose::Generate,
        iteration: 3,
        arms: vec![arm(1.0, 1.0, 0, 3, 0), arm(0.7, 0.9, 20, 2, 3)],
        max_new_tokens: 24,
        stop_ids: renderer.tokenizer.stop_ids.clone(),
    };
    let prompts: Vec<PromptTask> = (0..5)
        .map(|n| {
            let content = "tell me ".repeat(n + 1);
            let message = Message { role: "user".into(), content };
            PromptTask { ids: renderer.prompt(&[message]).unwrap(), occurrence: 0 }
        })
        .collect();
    let watch = Watch::default();
    // A random model seldom writes its own stop ids, so some ids that it does write end it here.
    let unstopped = generate_batch(&model, &prompts, &generation, &watch).unwrap();
    let Written::Responses(first) = &unstopped[0] else { panic!("not finite") };
    generation.stop_ids.extend([first[0].ids[5], first[1].ids[11], first[4].ids[2]]);
    generation.stop_ids.sort_unstable();
    let together = generate_batch(&model, &prompts, &generation, &watch).unwrap();
    assert_eq!(together, generate_batch(&model, &prompts, &generation, &watch).unwrap());
    let mut stopped = 0;
    for (prompt, written) in prompts.iter().zip(&together) {
        let Written::Responses(responses) = written else { panic!("not finite") };
        let alone =
            generate_batch(&model, std::slice::from_ref(prompt), &generation, &watch).unwrap();
        let Written::Responses(alone) = &alone[0] else { panic!("not finite") };
        assert_eq!(responses.len(), 5);
        for (sample, (one, other)) in responses.iter().zip(alone).enumerate() {
            assert_eq!((one.sample as usize, one.arm), (sample, u32::from(sample >= 3)));
            assert_eq!((&one.ids, one.finish), (&other.ids, other.finish));
            stopped += usize::from(one.finish == Finish::Stop);
            let ids = [prompt.ids.as_slice(), &one.ids].concat();
            let sequence = Sequence { ids, prompt_tokens: prompt.ids.len() };
            let again = response_logprobs(&model, &[sequence], &watch).unwrap();
            assert_close(&one.logprobs, &again[0], 1e-4, "log-probs");
        }
        assert_ne!(responses[0].ids, responses[1].ids, "samples draw their own numbers");
    }
    assert!(stopped > 5, "too few stopped: the test says nothing about rows that leave");
}

#[derive(Deserialize)]
struct ChatCase {
    conversation: usize,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

#[test]
fn two_hundred_conversations_render_to_the_same_text_and_ids() {
    let conversations: Vec<Vec<Message>> = read("conversations.json");
    assert!(conversations.len() >= 200);
    for entry in read::<Vec<ByModel<ChatCase>>>("chat.json") {
        let renderer = Renderer::open(&folder(&entry.model)).unwrap();
        for case in &entry.cases {
            let messages = &conversations[case.conversation];
            let turn = if case.add_generation_prompt { Turn::Opened } else { Turn::Closed };
            let text = renderer.text(messages, turn).unwrap();
            assert_eq!(text, case.text, "{} {}", entry.model, case.conversation);
            assert_eq!(renderer.tokenizer.encode(&text).unwrap(), case.ids, "{text:?}");
        }
    }
}

#[derive(Deserialize)]
struct TokenizeCase {
    text: String,
    add_special_tokens: bool,
    ids: Vec<u32>,
    decoded: String,
    decoded_plain: String,
}

#[test]
fn plain_text_tokenises_and_decodes_the_same() {
    for entry in read::<Vec<ByModel<TokenizeCase>>>("tokenize.json") {
        let tokenizer = Renderer::open(&folder(&entry.model)).unwrap().tokenizer;
        for case in &entry.cases {
            let add = if case.add_special_tokens { AddSpecial::Yes } else { AddSpecial::No };
            assert_eq!(tokenizer.encode_with(&case.text, add).unwrap(), case.ids, "{}", case.text);
            assert_eq!(tokenizer.decode_whole(&case.ids).unwrap(), case.decoded);
            assert_eq!(tokenizer.decode(&case.ids).unwrap(), case.decoded_plain);
        }
    }
}

#[derive(Deserialize)]
struct Templates {
    templates: Vec<NamedTemplate>,
    cases: Vec<TemplateCase>,
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
    variables: Map<String, Value>,
}

#[derive(Deserialize)]
struct TemplateCase {
    template: String,
    messages: Value,
    tools: Value,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn templates_of_other_families_render_to_the_letter_or_fail_with_their_own_words() {
    let golden: Templates = read("templates.json");
    // 2024-07-26T12:34:56 UTC, as the golden file says.
    let now = || 1_721_997_296;
    for case in &golden.cases {
        let named = golden.templates.iter().find(|named| named.name == case.template).unwrap();
        let variables = named.variables.clone();
        let template =
            ChatTemplate::new(&named.template, variables, Path::new("golden"), now).unwrap();
        let rendered =
            template.render_json(&case.messages, &case.tools, case.add_generation_prompt);
        match (&case.text, &case.error) {
            (Some(text), _) => assert_eq!(&rendered.unwrap().text, text, "{}", case.template),
            (None, Some(error)) => {
                let ours = rendered.unwrap_err().to_string();
                assert!(ours.contains(error), "{}: {ours:?} lacks {error:?}", case.template);
            }
            (None, None) => panic!("a case without text and error"),
        }
    }
}

#[derive(Deserialize)]
struct ScoreCase {
    messages: Vec<Message>,
    ids: Vec<u32>,
    score: f32,
    score_last: f32,
    position: usize,
    position_last: usize,
}

#[test]
fn scores_equal_those_of_transformers_at_both_positions_alone_and_together() {
    let watch = Watch::default();
    let mut parted = 0;
    for entry in read::<Vec<ByModel<ScoreCase>>>("scores.json") {
        let folder = folder(&entry.model).require_reward_model().unwrap();
        let (model, renderer) = (load(&folder), Renderer::open(&folder).unwrap());
        let mut all = Vec::new();
        for case in &entry.cases {
            let ids = renderer.conversation(&case.messages).unwrap();
            assert_eq!(ids, case.ids);
            let pad = model.config.pad_id;
            let rules = [
                (ScorePosition::Transformers, case.position, case.score),
                (ScorePosition::Last, case.position_last, case.score_last),
            ];
            for (rule, position, score) in rules {
                assert_eq!(scored_position(&ids, pad, rule), position, "{}", entry.model);
                let ours = score_batch(&model, std::slice::from_ref(&ids), rule, &watch).unwrap();
                assert_close(&ours, &[score], 1e-4, &entry.model);
            }
            parted += usize::from(case.position != case.position_last);
            all.push(ids);
        }
        let together = score_batch(&model, &all, ScorePosition::Transformers, &watch).unwrap();
        let golden: Vec<f32> = entry.cases.iter().map(|case| case.score).collect();
        assert_close(&together, &golden, 1e-4, "together");
    }
    assert!(parted > 0, "no golden case tells the two positions apart");
}

#[derive(Deserialize)]
struct LogprobCase {
    chosen: Vec<Message>,
    rejected: Vec<Message>,
    prompt_ids: Vec<u32>,
    chosen_ids: Vec<u32>,
    rejected_ids: Vec<u32>,
    chosen_logprobs: Vec<f32>,
    rejected_logprobs: Vec<f32>,
}

#[test]
fn pairs_split_as_trl_splits_them_and_their_logprobs_are_equal() {
    let watch = Watch::default();
    for entry in read::<Vec<ByModel<LogprobCase>>>("logprobs.json") {
        let folder = folder(&entry.model);
        let (model, renderer) = (load(&folder), Renderer::open(&folder).unwrap());
        let mut sequences = Vec::new();
        let mut golden = Vec::new();
        for case in &entry.cases {
            let pair = PairText::from_conversations(&case.chosen, &case.rejected).unwrap();
            let pair = renderer.pair(&pair, RenderRule::Conversation).unwrap();
            assert_eq!(pair.prompt, case.prompt_ids);
            assert_eq!((&pair.chosen, &pair.rejected), (&case.chosen_ids, &case.rejected_ids));
            let sides =
                [(&pair.chosen, &case.chosen_logprobs), (&pair.rejected, &case.rejected_logprobs)];
            for (response, wanted) in sides {
                let ids = [pair.prompt.as_slice(), response].concat();
                let sequence = Sequence { ids, prompt_tokens: pair.prompt.len() };
                let alone =
                    response_logprobs(&model, std::slice::from_ref(&sequence), &watch).unwrap();
                assert_close(&alone[0], wanted, 1e-4, &entry.model);
                sequences.push(sequence);
                golden.push(wanted);
            }
        }
        let together = response_logprobs(&model, &sequences, &watch).unwrap();
        for (ours, wanted) in together.iter().zip(golden) {
            assert_close(ours, wanted, 1e-4, "together");
        }
    }
}
