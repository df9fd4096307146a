//! A broker: asks the HTTP endpoint of the device that it was given, and prints a line for each answer. With other variables it
//! asks whatever device has a URL: `HTTP_VARIABLE=ONVIF_DEVICE_SERVICE_URL`, and `HTTP_BODY` for what is to be posted.

use http_body_util::{BodyExt as _, Limited};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use wstd::http::{Body, Client, Request};
use wstd::task::sleep;

/// Names the variable that has the device's URL, and its default: as Akri names the device of an HTTP discovery handler.
const VARIABLE: &str = "HTTP_VARIABLE";
const DEFAULT_VARIABLE: &str = "AKRI_HTTP_DEVICE_ENDPOINT";
/// What is posted, and its type; without it the device is asked by GET.
const BODY: &str = "HTTP_BODY";
const CONTENT_TYPE: &str = "HTTP_CONTENT_TYPE";
/// Seconds between two requests.
const INTERVAL: &str = "HTTP_INTERVAL";

/// How long an answer may take to begin, and each pause in it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const MOST: usize = 64 << 10;
/// Letters of it that are shown.
const MOST_SHOWN: usize = 1000;

/// What is asked, and how often.
struct Wanted {
    url: String,
    body: Option<String>,
    content_type: String,
    interval: Duration,
}

fn wanted() -> Result<Wanted, String> {
    let get = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let variable = get(VARIABLE).unwrap_or_else(|| DEFAULT_VARIABLE.to_owned());
    let url = get(&variable).ok_or_else(|| {
        format!("no {variable} in the environment: this pod has no such device; does it request one in its resources?")
    })?;
    let interval = get(INTERVAL).unwrap_or_else(|| "5".to_owned());
    let seconds = interval.parse().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("{INTERVAL}={interval:?}: expected seconds from 0.1 to 86400"))?;
    Ok(Wanted {
        url,
        body: get(BODY),
        content_type: get(CONTENT_TYPE).unwrap_or_else(|| "application/octet-stream".to_owned()),
        interval: Duration::from_secs_f64(seconds),
    })
}

/// What the endpoint says, in one line.
async fn ask(client: &Client, wanted: &Wanted) -> Result<String, String> {
    let request = match &wanted.body {
        None => Request::get(&wanted.url).body(Body::empty()),
        // With its length: many a camera takes no chunks.
        Some(body) => Request::post(&wanted.url)
            .header("content-type", &wanted.content_type)
            .header("content-length", body.len())
            .body(Body::from(body.clone())),
    };
    let request = request.map_err(|error| error.to_string())?;
    let answer = client.send(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body().into_boxed_body(), MOST).collect().await;
    let body = body.map_err(|error| format!("status {}: {error}", status.as_u16()))?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    let shown = line(&text);
    if status.is_success() { Ok(shown) } else { Err(format!("status {}: {shown}", status.as_u16())) }
}

/// A text in one line, and nothing in it that a terminal takes for an order.
fn line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|letter| !letter.is_control()).take(MOST_SHOWN).collect()
}

#[wstd::main]
async fn main() -> ExitCode {
    let wanted = match wanted() {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let mut client = Client::new();
    client.set_connect_timeout(TIMEOUT);
    client.set_first_byte_timeout(TIMEOUT);
    client.set_between_bytes_timeout(TIMEOUT);
    loop {
        let started = Instant::now();
        match ask(&client, &wanted).await {
            Ok(said) => println!("{} = {said}", wanted.url),
            Err(why) => eprintln!("{}: {why}", wanted.url),
        }
        sleep(wanted.interval.saturating_sub(started.elapsed()).into()).await;
    }
}
