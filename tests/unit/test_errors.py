"""
The table of errors, and the one direction of imports.
"""

import subprocess
import sys
from pathlib import Path

import grpc

from nv_embed.errors import BY_GRPC_CODE, TABLE, InvalidInput, WorkerAction

ROOT = Path(__file__).resolve().parent.parent.parent


def test_each_class_has_a_grpc_code_of_its_own() -> None:
    assert len(BY_GRPC_CODE) == len(TABLE) == 7
    assert all(hasattr(grpc.StatusCode, code) for code in BY_GRPC_CODE)


def test_the_table_is_that_of_the_design() -> None:
    assert [(error.__name__, error.grpc_code, error.http_status, error.sqlstate) for error in TABLE] == [
        ("InvalidInput", "INVALID_ARGUMENT", 400, "22023"),
        ("UnknownModel", "NOT_FOUND", 404, "42704"),
        ("Unauthenticated", "UNAUTHENTICATED", 401, "28000"),
        ("Overloaded", "RESOURCE_EXHAUSTED", 429, "53000"),
        ("Unavailable", "UNAVAILABLE", 503, "58000"),
        ("DeadlineExceeded", "DEADLINE_EXCEEDED", 504, "57014"),
        ("EngineFailure", "INTERNAL", 500, "38000"),
    ]


def test_only_the_row_at_fault_is_failed_for_bad_input_and_overload_is_no_attempt() -> None:
    actions = {error.__name__: error.worker_action for error in TABLE}
    assert actions["InvalidInput"] is actions["UnknownModel"] is WorkerAction.FAIL_ROW
    assert actions["Overloaded"] is WorkerAction.WAIT


def test_a_message_names_the_text_and_the_remedy() -> None:
    assert str(InvalidInput("too long", hint="cut it", position=2)) == "text 3: too long (cut it)"


def test_imports_go_one_way() -> None:
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_library_in_the_backend_imports_no_torch_numpy_psycopg_or_opentelemetry() -> None:
    kept_out = ["torch", "transformers", "numpy", "psycopg", "rich", "opentelemetry"]
    program = f"import sys, nv_embed.plpython; print([name for name in {kept_out} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
