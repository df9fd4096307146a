//! A broker: asks the HTTP endpoint of the device that it was given, and prints a line for each answer. With other variables it
//! asks whatever device has a URL: `HTTP_VARIABLE=ONVIF_DEVICE_SERVICE_URL`, and `HTTP_BODY` for what is to be posted.

use http_body_util::BodyExt as _;
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
/// Bytes of an answer that are read; the rest is not waited for.
const MOST_BODY_BYTES: usize = 64 << 10;
/// Letters of a URL that are shown.
const MOST_URL_SHOWN: usize = 256;
/// Letters of an answer that are shown.
const MOST_SHOWN: usize = 1000;

struct Settings {
    url: String,
    /// The same as it is shown.
    name: String,
    body: Option<String>,
    content_type: String,
    interval: Duration,
}

fn settings() -> Result<Settings, String> {
    let variable = broker::variable(VARIABLE).unwrap_or_else(|| DEFAULT_VARIABLE.to_owned());
    let url = broker::device(&variable)?;
    Ok(Settings {
        name: broker::line(&url, MOST_URL_SHOWN),
        url,
        body: broker::variable(BODY),
        content_type: broker::variable(CONTENT_TYPE).unwrap_or_else(|| "application/octet-stream".to_owned()),
        interval: broker::interval(INTERVAL, Duration::from_secs(5))?,
    })
}

/// What the endpoint says, in one line.
async fn ask(client: &Client, settings: &Settings) -> Result<String, String> {
    let request = match &settings.body {
        None => Request::get(&settings.url).body(Body::empty()),
        // With its length: many a camera takes no chunks.
        Some(body) => Request::post(&settings.url)
            .header("content-type", &settings.content_type)
            .header("content-length", body.len())
            .body(Body::from(body.clone())),
    };
    let request = request.map_err(|error| error.to_string())?;
    let answer = client.send(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let mut body = answer.into_body().into_boxed_body();
    let mut bytes = Vec::new();
    while bytes.len() < MOST_BODY_BYTES
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| format!("status {}: {error}", status.as_u16()))?;
        bytes.extend(frame.data_ref().into_iter().flatten());
    }
    let said = broker::line(&String::from_utf8_lossy(&bytes), MOST_SHOWN);
    if status.is_success() { Ok(said) } else { Err(format!("status {}: {said}", status.as_u16())) }
}

#[wstd::main]
async fn main() -> ExitCode {
    let Some(settings) = broker::begin(settings()) else { return ExitCode::FAILURE };
    let mut client = Client::new();
    client.set_connect_timeout(TIMEOUT);
    client.set_first_byte_timeout(TIMEOUT);
    client.set_between_bytes_timeout(TIMEOUT);
    loop {
        let started = Instant::now();
        match ask(&client, &settings).await {
            Ok(said) => println!("{} = {said}", settings.name),
            Err(why) => eprintln!("{}: {why}", settings.name),
        }
        sleep(settings.interval.saturating_sub(started.elapsed()).into()).await;
    }
}
