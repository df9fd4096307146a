//! Answers of gRPC servers that send what they like.

use http::{Request, Response};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::Service;

/// What tonic 0.14 panics on if it is no base64; nobody here reads it.
const DETAILS: &str = "grpc-status-details-bin";

/// A connection to a server that is not trusted: what a client of tonic cannot take is left out of its answers.
#[derive(Clone, Debug)]
pub struct Untrusted<S>(S);

impl<S> Untrusted<S> {
    /// Over this connection.
    pub fn new(connection: S) -> Self {
        Self(connection)
    }
}

impl<S> Service<Request<Body>> for Untrusted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            answer.headers_mut().remove(DETAILS);
            Ok(answer.map(|body| {
                Body::new(body.map_frame(|mut frame| {
                    if let Some(trailers) = frame.trailers_mut() {
                        trailers.remove(DETAILS);
                    }
                    frame
                }))
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    #[tokio::test]
    async fn details_that_are_none_reach_no_client_neither_by_headers_nor_by_trailers() {
        let mut wrong = HeaderMap::new();
        wrong.insert(DETAILS, "!".parse().unwrap());
        wrong.insert("grpc-status", "2".parse().unwrap());
        let server = tower::service_fn(move |_: Request<Body>| {
            let trailers = wrong.clone();
            let body = http_body_util::Empty::new().with_trailers(async { Some(Ok(trailers)) });
            let mut answer = Response::new(Body::new(body.map_err(|never: std::convert::Infallible| match never {})));
            *answer.headers_mut() = wrong.clone();
            async { Ok::<_, std::convert::Infallible>(answer) }
        });
        let answer = Untrusted::new(server).call(Request::new(Body::empty())).await.unwrap();
        assert_eq!((answer.headers().len(), answer.headers().get(DETAILS)), (1, None));
        let trailers = answer.into_body().collect().await.unwrap().trailers().cloned().unwrap();
        assert_eq!((trailers.len(), trailers.get(DETAILS)), (1, None));
    }
}
