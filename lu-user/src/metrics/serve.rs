//! The HTTP server: `/metrics`, `/healthz`, `/readyz` and a page with links to them.
//!
//! It runs in a thread of its own and reads what the collector counts: no scrape waits for the collector, nor the
//! collector for a scrape.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use maud::html;
use prometheus_client::encoding::{prometheus_protobuf, prometheus_text, text};
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::{Health, Metrics, Served, own::Own};
use crate::journal::clocks;

/// Where metrics are served unless told otherwise. 9464 is what OpenTelemetry's exporters for Prometheus use.
pub const ADDRESS: &str = "127.0.0.1:9464";

/// How many connections there may be at once; more are closed.
const CONNECTIONS: usize = 32;

/// Between the first byte of a request and the end of its header, and between two requests, no more than this.
const HEADER: Duration = Duration::from_secs(10);

/// Nobody keeps a connection for longer.
const CONNECTION: Duration = Duration::from_mins(5);

/// What has been asked for may take this long when a connection is to end.
const GRACE: Duration = Duration::from_secs(5);

/// The collector's loop comes round at least this often.
pub const TURN: Duration = Duration::from_secs(1);

/// It stands still if it has not come round for so long.
const STUCK: Duration = Duration::from_secs(10);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot serve metrics at {0}: {1}; choose another address with --export")]
    Bind(SocketAddr, io::Error),
    /// The server does not start.
    #[error("cannot serve metrics: {0}")]
    Start(#[from] io::Error),
}

/// An address that is ours, where nobody is answered yet.
pub struct Listener(TcpListener);

impl Listener {
    /// Takes the address.
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        let bound = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(Self(listener))
        });
        bound.map_err(|error| Error::Bind(address, error))
    }

    /// The address, with the port that the kernel chose where that was left to it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers from now on, in a thread that has the privileges which the caller has now.
    pub fn serve(self, metrics: &Metrics) -> Result<(), Error> {
        let site = Arc::new(Site {
            registry: metrics.registry.clone(),
            health: metrics.health.clone(),
            own: metrics.own.clone(),
            served: metrics.served.clone(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("lu-export".into())
            .spawn(move || {
                runtime.block_on(accept(self.0, &site));
            })?;
        Ok(())
    }
}

async fn accept(listener: TcpListener, site: &Arc<Site>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("lu: no metrics are served: {error}");
            return;
        }
    };
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many files are open, say: that passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            site.served.refused.inc();
            continue;
        };
        let site = site.clone();
        tokio::spawn(async move {
            answer_all(stream, site).await;
            drop(place);
        });
    }
}

/// Answers what comes over one connection.
async fn answer_all(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(move |request| {
        let answer = site.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Whoever breaks off, or sends nonsense, has had his answer.
    if tokio::time::timeout(CONNECTION, connection.as_mut())
        .await
        .is_err()
    {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(GRACE, connection).await;
    }
}

struct Site {
    registry: Arc<Registry>,
    health: Arc<Health>,
    own: Own,
    served: Served,
}

/// The pages.
const PAGES: [(&str, &str); 3] = [
    ("/metrics", "the metrics, for Prometheus"),
    ("/healthz", "whether the collector's loop comes round"),
    (
        "/readyz",
        "whether hooks are attached, the policy is in force, and an orchestrator is there",
    ),
];

impl Site {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = page(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "GET and HEAD\n".into(),
            );
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => self.metrics(request.headers()),
            "/healthz" => told(&self.health.alive(clocks::now_ns())),
            "/readyz" => told(&self.health.ready()),
            "/" => page(StatusCode::OK, "text/html; charset=utf-8", home().into()),
            _ => page(
                StatusCode::NOT_FOUND,
                TEXT,
                "there is no such page\n".into(),
            ),
        }
    }

    fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let format = Format::asked_for(headers);
        self.own.look();
        self.served.scrapes.at(format as usize).inc();
        match format.encode(&self.registry) {
            Ok(body) => page(StatusCode::OK, format.content_type(), body),
            Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.into()),
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn page(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A line for each of several things; 503 unless all hold.
fn told(things: &[(&str, bool)]) -> Response<Full<Bytes>> {
    let all = things.iter().all(|(_, holds)| *holds);
    let mut text = String::new();
    for (what, holds) in things {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{} {what}", if *holds { "ok" } else { "NOT" });
    }
    let status = if all {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    page(status, TEXT, text.into())
}

fn home() -> String {
    html! {
        (maud::DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { "lu" } }
            body {
                h1 { "lu " (env!("CARGO_PKG_VERSION")) }
                ul {
                    @for (path, what) in PAGES {
                        li { a href=(path) { (path) } ": " (what) }
                    }
                }
            }
        }
    }
    .into_string()
}

impl Health {
    fn alive(&self, now_ns: u64) -> [(&'static str, bool); 1] {
        let turned_ns = self.turned_ns.load(Ordering::Relaxed);
        let since = Duration::from_nanos(now_ns.saturating_sub(turned_ns));
        [(
            "the collector's loop comes round",
            turned_ns > 0 && since < STUCK,
        )]
    }

    fn ready(&self) -> [(&'static str, bool); 3] {
        let is = |flag: &std::sync::atomic::AtomicBool| flag.load(Ordering::Relaxed);
        [
            ("hooks are attached", self.hooks.load(Ordering::Relaxed) > 0),
            (
                "the policy that was asked for is in force",
                is(&self.has_policy) || !is(&self.wants_policy),
            ),
            ("an orchestrator is there", is(&self.has_orchestrator)),
        ]
    }
}

/// How metrics are written, in the order of [`FORMATS`](super::catalogue::FORMATS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    OpenMetrics,
    Text,
    Protobuf,
}

impl Format {
    /// The best that the scraper takes; the classic text where it says nothing of what there is.
    fn asked_for(headers: &HeaderMap) -> Self {
        let mut best = (0.0, Self::Text);
        let accepted = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok());
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut weight, mut proto, mut encoding, mut version) = (1.0, "", "", "");
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match name.trim() {
                    "q" => weight = value.parse().unwrap_or(0.0),
                    "proto" => proto = value,
                    "encoding" => encoding = value,
                    "version" => version = value,
                    _ => {}
                }
            }
            let format = match kind {
                "application/openmetrics-text" if matches!(version, "" | "1.0.0" | "0.0.1") => {
                    Self::OpenMetrics
                }
                "application/vnd.google.protobuf"
                    if proto == "io.prometheus.client.MetricFamily" && encoding == "delimited" =>
                {
                    Self::Protobuf
                }
                "text/plain" if matches!(version, "" | "0.0.4") => Self::Text,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, format);
            }
        }
        best.1
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    fn encode(self, registry: &Registry) -> Result<Vec<u8>, String> {
        let mut body = String::new();
        match self {
            Self::OpenMetrics => text::encode(&mut body, registry),
            Self::Text => prometheus_text::encode(&mut body, registry),
            Self::Protobuf => {
                return prometheus_protobuf::encode_to_vec(registry)
                    .map_err(|error| format!("{error:?}"));
            }
        }
        .map_err(|error| error.to_string())?;
        Ok(body.into())
    }
}
