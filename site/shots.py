"""Screenshots of the policy studio: three widths, light and dark, of a run of the shipped walker

    python site/shots.py FOLDER [--latent N] [--alpha A]

They need playwright and a Chromium. Beside a run of phase 6, `site/showcase.py` takes them along.
"""
import argparse, io, re, shutil, subprocess, sys
from pathlib import Path
from PIL import Image
from playwright.sync_api import sync_playwright

STUDIO = [Path(sys.executable).parent/'steerlens', 'studio', '--port', '0']


def small(png, path):
    "In 96 colours, a third of the bytes"
    image = Image.open(io.BytesIO(png)).convert('RGB')
    image.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('folder', type=Path, help='where the pictures go')
    a.add_argument('--latent', default='76', help='which is pushed')
    a.add_argument('--alpha', default='0.016', help='how far')
    a = a.parse_args()
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not chromium: sys.exit('no Chromium on PATH; on Debian: apt install chromium')
    a.folder.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(STUDIO, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r'http://\S+', server.stdout.readline())[0]
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
            page = browser.new_page(viewport=dict(width=1440, height=900), reduced_motion='reduce')
            page.goto(address)
            page.click('#take-walker')
            page.wait_for_selector('#card:not([hidden])', timeout=90_000)
            page.select_option('#latent', a.latent)
            page.fill('#alpha-number', a.alpha)
            page.press('#alpha-number', 'Enter')
            page.click('#run-settings summary')
            page.fill('#n-seeds', '20')
            page.click('#run')
            page.wait_for_selector('#result:not([hidden])', timeout=300_000)
            for scheme in ('light', 'dark'):
                for width in (390, 900, 1440):
                    page.emulate_media(color_scheme=scheme, reduced_motion='reduce')
                    page.set_viewport_size(dict(width=width, height=900))
                    page.evaluate('scrollTo(0, 0)')
                    page.wait_for_timeout(600)
                    small(page.screenshot(full_page=True), a.folder/f'page_{width}_{scheme}.png')
            page.emulate_media(color_scheme='light', reduced_motion='reduce')
            small(page.screenshot(), a.folder/'page.png') # the first screen, for the front page
            browser.close()
    finally: server.terminate()
    print(*sorted(p.name for p in a.folder.glob('page_*.png')))


if __name__=='__main__': main()
