"""An ML engineer's load test: users who post one body and never pause. For `locust -f`."""

from argparse import ArgumentParser

from locust import FastHttpUser, events, task


@events.init_command_line_parser.add_listener
def flags(parser: ArgumentParser) -> None:
    parser.add_argument("--body", help="what to post")


class Caller(FastHttpUser):
    @task
    def generate(self) -> None:
        headers = {"Content-Type": "application/json"}
        self.client.post("/generate", data=self.environment.parsed_options.body, headers=headers)
