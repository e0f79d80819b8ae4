"""mkdocs hooks: pages of the repository outside docs/ become pages of the site, too.

Links are written as they work in the repository. Here those to pages lead to the page on the site,
and those to other files of the repository become the file's name in code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r'(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)')


def on_files(files: Files, config) -> Files:
    """Add the pages that the navigation names and docs/ does not have."""
    for name in sorted(_named(config['nav'])):
        if files.get_file_from_path(name) is None:
            content = (ROOT / name).read_text(encoding='utf-8')
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Point the links of a page to where their targets are on the site."""
    source = page.file.src_uri
    if (Path(config['docs_dir']) / source).is_file():
        folder = posixpath.dirname(f'docs/{source}')
    else:
        folder = posixpath.dirname(source)
    return _LINK.sub(lambda match: _move_link(match, folder, source, files), markdown)


def _move_link(match: re.Match[str], folder: str, source: str, files: Files) -> str:
    """A link of the page `source` whose links are relative to `folder` of the repository."""
    image, text, target, anchor = match.groups()
    path = posixpath.normpath(posixpath.join(folder, target))
    if not (ROOT / path).exists():
        return match[0]  # mkdocs will complain

    uri = path.removeprefix('docs/')
    if files.get_file_from_path(uri) is None:
        return text if text.startswith('`') else f'{text} (`{path}`)'

    start = posixpath.dirname(source) or '.'
    link = posixpath.relpath(uri, start)
    return f'{image}[{text}]({link}{anchor or ""})'


def _named(nav) -> set[str]:
    """Pages in a part of the navigation."""
    if isinstance(nav, str):
        return {nav}
    parts = nav.values() if isinstance(nav, dict) else nav
    return {name for part in parts for name in _named(part)}
