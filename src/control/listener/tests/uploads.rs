//! Uploads: all of one, or nothing.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Daemon, GOOD, PROMPTS, REWARD, SFT, parse};
use crate::handles::Command;

#[actix_rt::test]
async fn a_good_upload_is_counted_and_its_retry_harmless() {
    let daemon = Daemon::start().await;
    let target = format!("{PROMPTS}?client_key=k1");
    let got = daemon.post(&target, GOOD).await;
    assert_eq!(got.status, 200, "{}", got.text);
    let expected = json!({
        "set": "own", "lines": 3, "added": 2, "reserved": 0, "duplicates": 1, "bad": 0, "repeated": false,
    });
    assert_eq!(got.json(), expected);
    let again = daemon.post(&target, GOOD).await.json();
    assert_eq!((&again["added"], &again["repeated"]), (&json!(2), &json!(true)));
    let without_key = daemon.post(PROMPTS, GOOD).await.json();
    assert_eq!((&without_key["added"], &without_key["duplicates"]), (&json!(0), &json!(3)));
    let sets = daemon.get("/v1/prompt-sets").await.json();
    assert_eq!(sets["prompt_sets"][0]["fresh"], json!(2));
    assert_eq!(daemon.orders.lock().unwrap().first(), Some(&Command::UploadPublished));
    // The kernel's word on who asked stands in the events.
    let uid = rustix::process::getuid().as_raw();
    let rows = daemon.sql("select DISTINCT uid FROM events WHERE kind = 'upload_published'").await;
    assert_eq!(rows, json!([[uid]]));
}

#[actix_rt::test]
async fn a_set_has_a_priority_and_a_weight() {
    let daemon = Daemon::start().await;
    let set = "/v1/prompt-sets/own";
    let order = |body: &'static str| daemon.post(set, body.as_bytes());
    assert_eq!(order(r#"{"weight": 2}"#).await.status, 404, "there is no such set yet");
    let added = daemon.post(&format!("{PROMPTS}?priority=-3&weight=0.5"), GOOD).await;
    assert_eq!(added.status, 200, "{}", added.text);
    let told = || async {
        let sets = daemon.get("/v1/prompt-sets").await.json();
        let first = &sets["prompt_sets"][0];
        (first["priority"].clone(), first["weight"].clone())
    };
    assert_eq!(told().await, (json!(-3), json!(0.5)));
    // Another upload that says nothing of it leaves them as they are.
    daemon.post(PROMPTS, b"{\"prompt\": \"more\"}\n").await;
    assert_eq!(told().await, (json!(-3), json!(0.5)));
    let done = order(r#"{"priority": 4}"#).await;
    assert_eq!(done.status, 200, "{}", done.text);
    assert_eq!(done.json()["message"], "own has priority 4 and weight 0.5 from the next draw on");
    assert_eq!(told().await, (json!(4), json!(0.5)));
    for (body, word) in [
        ("{}", "nothing of the set would change"),
        (r#"{"weight": 0}"#, "a weight of 0 is out of range"),
        (r#"{"weight": -1}"#, "a weight of -1 is out of range"),
        (r#"{"priority": 99999999}"#, "a priority of 99999999 is out of range"),
        (r#"{"share": 1}"#, "share"),
    ] {
        let refused = daemon.post(set, body.as_bytes()).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert!(refused.error().contains(word), "{word}: {}", refused.error());
    }
    let refused = daemon.post(&format!("{PROMPTS}?weight=nan"), GOOD).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert_eq!(told().await, (json!(4), json!(0.5)));
    let rows = daemon.sql("select message FROM events WHERE kind = 'prompt_set_changed'").await;
    assert_eq!(rows, json!([["prompt set own: priority 4, weight 0.5"]]));
}

#[actix_rt::test]
async fn bad_lines_are_named_and_nothing_is_kept() {
    let daemon = Daemon::start().await;
    let mut long = b"{\"prompt\": \"".to_vec();
    long.resize(10_000_000, b'x');
    let bad: &[(&[u8], &str)] = &[
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"{", "is not JSON"),
        (b"{\"prompt\": 3}", "`prompt` is a number"),
        (b"{\"prompt\": \"\xff\"}", "is not UTF-8"),
        (b"{\"messages\": []}", "`messages` is empty"),
        (b"{\"messages\": [{\"role\": \"user\"}]}", "has no `content`"),
        (b"[1, 2]", "is an array"),
        (&long, "longer than 4 MiB"),
    ];
    for (line, reason) in bad {
        // Enough good rows before and after it that batches were on their way.
        let mut body = Vec::new();
        if !line.iter().all(u8::is_ascii_whitespace) {
            for i in 0..2_500 {
                body.extend_from_slice(format!("{{\"prompt\": \"p{i}\"}}\n").as_bytes());
            }
        }
        body.extend_from_slice(line);
        body.extend_from_slice(b"\n");
        let got = daemon.post(PROMPTS, &body).await;
        assert_eq!(got.status, 422, "{reason}: {}", got.text);
        assert!(got.error().contains(reason), "{reason}: {}", got.error());
        if body.len() > line.len() + 1 {
            assert_eq!(got.json()["error"]["lines"][0]["line"], json!(2_501));
        }
    }
    daemon.assert_empty().await;
}

#[actix_rt::test]
async fn bad_lines_may_be_left_out() {
    let daemon = Daemon::start().await;
    let body = b"{\"prompt\": \"one\"}\nnonsense\n{\"prompt\": \"two\"}\n{}\n";
    let got = daemon.post(&format!("{PROMPTS}?skip_bad=true&reserve=0.5"), body).await.json();
    assert_eq!((&got["lines"], &got["added"], &got["bad"]), (&json!(4), &json!(2), &json!(2)));
    assert_eq!(got["bad_lines"][1]["line"], json!(4));
    let all_bad = daemon.post(&format!("{PROMPTS}?skip_bad=true"), b"{}\n{}\n").await;
    assert_eq!(all_bad.status, 422);
    assert!(all_bad.error().contains("all 2 lines are bad"));
}

#[actix_rt::test]
async fn an_upload_that_is_cut_off_leaves_nothing() {
    let daemon = Daemon::start().await;
    for target in [PROMPTS, REWARD, SFT] {
        let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
        let head = format!("POST {target} HTTP/1.1\r\nHost: d\r\nContent-Length: 9000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for i in 0..5_000 {
            let line =
                format!("{{\"prompt\": \"p{i}\", \"chosen\": \"a\", \"rejected\": \"b\"}}\n");
            stream.write_all(line.as_bytes()).await.unwrap();
        }
        daemon.until("select count(*) FROM uploads WHERE state = 'open'", json!([[1]])).await;
        drop(stream);
        daemon.assert_empty().await;
    }
    daemon.until("select count(*) FROM uploads WHERE state = 'failed'", json!([[3]])).await;
}

#[actix_rt::test]
async fn a_slow_upload_holds_nobody_up() {
    let daemon = Daemon::start().await;
    let mut slow = UnixStream::connect(&daemon.socket).await.unwrap();
    let head = format!(
        "POST {PROMPTS} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(b"5\r\n{\"pro\r\n").await.unwrap();
    daemon.until("select count(*) FROM uploads WHERE state = 'open'", json!([[1]])).await;
    let other = daemon.post("/v1/prompt-sets/other/prompts", GOOD).await;
    assert_eq!(other.status, 200, "{}", other.text);
    assert_eq!(daemon.get("/v1/status").await.status, 200);
    slow.write_all(b"a\r\nmpt\": \"x\"}\r\n0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).status, 200, "{}", String::from_utf8_lossy(&answer));
}

#[actix_rt::test]
async fn preferences_become_a_file_and_a_job() {
    let daemon = Daemon::start().await;
    let body = b"{\"prompt\": \"Q\", \"chosen\": \"a\", \"rejected\": \"b\"}\n{\"prompt\": \"R\", \"chosen\": \"c\", \"rejected\": \"d\"}\n";
    let got = daemon.post(REWARD, body).await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert_eq!((&got.json()["job"], &got.json()["examples"]), (&json!("reward/demo"), &json!(2)));
    let orders = daemon.orders.lock().unwrap().clone();
    let [Command::Train { job, upload }] = orders.as_slice() else { panic!("{orders:?}") };
    assert_eq!(job.to_string(), "reward/demo");
    let file = daemon.folder.path().join(format!("state/uploads/{upload}.jsonl"));
    let lines = std::fs::read_to_string(file).unwrap();
    assert_eq!(
        lines.lines().next().unwrap(),
        r#"{"chosen":[{"role":"user","content":"Q"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"Q"},{"role":"assistant","content":"b"}]}"#
    );
}

#[actix_rt::test]
async fn a_lines_weight_is_kept_beside_it() {
    let daemon = Daemon::start().await;
    let pair = |weight: &str| {
        format!(
            "{{\"prompt\": \"Q\", \"chosen\": \"a\", \"rejected\": \"b\", \"weight\": {weight}}}\n"
        )
    };
    let got = daemon.post(REWARD, (pair("2.5") + &pair("1")).as_bytes()).await;
    assert_eq!(got.status, 200, "{}", got.text);
    let orders = daemon.orders.lock().unwrap().clone();
    let [Command::Train { upload, .. }] = orders.as_slice() else { panic!("{orders:?}") };
    let file = daemon.folder.path().join(format!("state/uploads/{upload}.jsonl"));
    let text = std::fs::read_to_string(file).unwrap();
    let starts: Vec<&str> = text.lines().map(|line| &line[..14]).collect();
    assert_eq!(starts, ["{\"weight\":2.5,", "{\"chosen\":[{\"r"]);
    for weight in ["0", "-1", "\"2\"", "1e9"] {
        let got = daemon.post(REWARD, pair(weight).as_bytes()).await;
        assert_eq!(got.status, 422, "{}", got.text);
        assert!(got.error().contains("has a `weight` that is no number"), "{}", got.error());
    }
}

#[actix_rt::test]
async fn examples_with_a_prompt_that_is_kept_for_evaluation_are_left_out() {
    let daemon = Daemon::start().await;
    let prompts = b"{\"prompt\": \"Why is the sky blue?\"}\n{\"prompt\": \"And the sea?\"}\n";
    // A share this near to 1 reserves both.
    let got = daemon.post(&format!("{PROMPTS}?reserve=0.999999"), prompts).await;
    assert_eq!(got.json()["reserved"], json!(2), "{}", got.text);
    let pair = |prompt: &str| {
        let line = json!({"prompt": prompt, "chosen": "a", "rejected": "b"});
        format!("{line}\n")
    };
    let group = json!({"prompt": "and the SEA?", "responses": ["a", "b"], "pairs": [[0, 1]]});
    let body = format!("{}{}{group}\n", pair("why is  the sky BLUE? "), pair("Other?"));
    let got = daemon.post(REWARD, body.as_bytes()).await.json();
    assert_eq!(
        (&got["lines"], &got["examples"], &got["evaluation_prompts"]),
        (&json!(3), &json!(1), &json!(2))
    );
    // In a conversation every turn of the assistant answers a prompt.
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let late = json!({"messages": [
        turn("user", "Why is the sky blue?"), turn("assistant", "It scatters."),
        turn("user", "More."), turn("assistant", "No."),
    ]});
    let other = json!({"messages": [turn("user", "x"), turn("assistant", "y")]});
    let got = daemon.post(SFT, format!("{late}\n{other}\n").as_bytes()).await.json();
    assert_eq!((&got["examples"], &got["evaluation_prompts"]), (&json!(1), &json!(1)));
    let none = daemon.post(SFT, format!("{late}\n").as_bytes()).await;
    assert_eq!(none.status, 422, "{}", none.text);
    assert!(none.error().contains("every example has a prompt that is kept"), "{}", none.error());
}

#[actix_rt::test]
async fn conversations_become_a_file_and_a_job() {
    let daemon = Daemon::start().await;
    let body = br#"{"messages": [{"role": "user", "content": "Q"}, {"content": "a", "role": "assistant"}], "id": 3}"#;
    let got = daemon.post(SFT, body).await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert_eq!((&got.json()["job"], &got.json()["examples"]), (&json!("sft/demo"), &json!(1)));
    let orders = daemon.orders.lock().unwrap().clone();
    let [Command::Train { job, upload }] = orders.as_slice() else { panic!("{orders:?}") };
    assert_eq!(job.to_string(), "sft/demo");
    let file = daemon.folder.path().join(format!("state/uploads/{upload}.jsonl"));
    assert_eq!(
        std::fs::read_to_string(file).unwrap(),
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}\n"
    );
    daemon.until("select kind FROM uploads", json!([["conversations"]])).await;
}

#[actix_rt::test]
async fn bad_preferences_are_named_and_leave_nothing() {
    let daemon = Daemon::start().await;
    for (line, reason) in [
        (r#"{"chosen": "a", "rejected": "b"}"#, "there is no `prompt`"),
        (r#"{"prompt": "Q", "chosen": "a"}"#, "has no `rejected`"),
        (r#"{"prompt": "Q", "chosen": "a", "rejected": "a"}"#, "are the same"),
        (
            r#"{"chosen": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}]}"#,
            "prompts of `chosen` and `rejected` differ",
        ),
    ] {
        let line = line.replace('\n', " ");
        let got = daemon.post(REWARD, line.as_bytes()).await;
        assert_eq!(got.status, 422, "{}", got.text);
        assert!(got.error().contains(reason), "{}", got.error());
    }
    daemon.assert_empty().await;
    assert_eq!(*daemon.orders.lock().unwrap(), []);
}
