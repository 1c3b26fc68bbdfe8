"""The doors that there are."""

from __future__ import annotations

from qwen3guard_apps.doors.anthropic import MessagesDoor
from qwen3guard_apps.doors.completions import CompletionsDoor
from qwen3guard_apps.doors.door import ChatDoor, Door
from qwen3guard_apps.doors.responses import ResponsesDoor

CHAT = ChatDoor()
DOORS: dict[str, Door] = {
    f"/v1/{door.path}": door for door in (CHAT, ResponsesDoor(), CompletionsDoor(), MessagesDoor())
}
"""By their routes."""
